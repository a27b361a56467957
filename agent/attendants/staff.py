"""Who attends the calls of a server, and what they add to what its engine can do."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from agent.attendants.asides import Admit, Asides, PictureReader
from agent.attendants.asking import Asker
from agent.attendants.equipment import Equipment, EquippedConversation
from agent.attendants.record import CallRecord
from agent.attendants.server_tools import ServerTools
from agent.attendants.side_tools import SideTools
from agent.attendants.toolbox import Toolbox, ToolRules
from agent.attendants.transcriber import Transcriber
from agent.clock import SYSTEM_CLOCK, Clock
from agent.interfaces import Attendant, Conversation, Engine
from agent.realtime import AnswerAside
from agent.telemetry import Telemetry
from agent.tools import ServerTool, ToolContext
from agent.types import Abilities, SessionSettings


@dataclass(frozen=True, slots=True)
class StaffRules:
    """What is done beside engines. `max_side_chats` 0: no chats; `transcribes`: what users say is
    written down where an engine does not do so by itself. `max_asides`: out-of-band responses that
    are answered at a time, of all calls; 0: none is."""

    tools: ToolRules = field(default_factory=ToolRules)
    max_side_chats: int = 2
    side_timeout_s: float = 5.0
    transcribes: bool = True
    max_asides: int = 2
    aside_timeout_s: float = 60.0

    def _may_chat(self, engine: Abilities) -> bool:
        return engine.chat and self.max_side_chats > 0

    def decides(self, engine: Abilities) -> bool:
        """Whether functions can be called beside its conversations; what comes of it is typed."""
        return self._may_chat(engine) and engine.typed_text

    def writes(self, engine: Abilities) -> bool:
        """Whether this server writes down what is said to it."""
        return self._may_chat(engine) and self.transcribes and not engine.transcription

    def answers(self, engine: Abilities) -> bool:
        """Whether this server answers out of band."""
        return engine.chat and self.max_asides > 0

    def able(self, engine: Abilities) -> Abilities:
        """What calls with it can do."""
        return replace(
            engine,
            side_tools=self.decides(engine),
            out_of_band=self.answers(engine),
            transcription=engine.transcription or self.writes(engine),
        )


@dataclass(frozen=True, slots=True)
class CallStaff:
    """Of one call."""

    equipment: Equipment
    attendants: tuple[Attendant, ...] = ()
    asides: Asides | None = None

    def answer(self, asked: AnswerAside) -> None:
        """Answer out of band, or give that up."""
        if self.asides is not None:
            self.asides.answer(asked)

    def settings(self, settings: SessionSettings) -> SessionSettings:
        """What its engine is opened with."""
        return self.equipment.settings(settings)

    def equip(self, conversation: Conversation) -> Conversation:
        """What its session talks to."""
        return (
            EquippedConversation(conversation, self.equipment) if self.attendants else conversation
        )


class Staff:
    """For all calls of one server."""

    def __init__(
        self,
        engine: Engine,
        telemetry: Telemetry,
        rules: StaffRules = StaffRules(),
        tools: Sequence[ServerTool] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._engine = engine
        self._telemetry = telemetry
        self._rules = rules
        self._clock = clock
        self._toolbox = Toolbox(tools, rules.tools, clock)
        self._asker = Asker(engine, max(1, rules.max_side_chats), rules.side_timeout_s)
        self._aside_asker = Asker(engine, max(1, rules.max_asides), rules.aside_timeout_s)
        self._pictures = PictureReader()

    def for_call(self, context: ToolContext, admit: Admit = nullcontext) -> CallStaff:
        """Those who are needed, if anybody is. `admit` is asked before each out-of-band answer."""
        able = self._engine.abilities
        tools = tuple(tool.definition for tool in self._toolbox.tools.values())
        equipment = Equipment(tools, able)
        decides, writes = self._rules.decides(able), self._rules.writes(able)
        answers = self._rules.answers(able)
        if not (decides or writes or answers or (tools and able.tools)):
            return CallStaff(equipment)
        telemetry, clock = self._telemetry, self._clock
        record = CallRecord(clock, shows_sound=answers)
        server_tools = ServerTools(record, self._toolbox, equipment, context, telemetry, clock)
        attendants: list[Attendant] = [record, server_tools]
        if decides:
            attendants.append(
                SideTools(record, server_tools, equipment, self._asker, telemetry, clock)
            )
        if writes:
            attendants.append(Transcriber(record, self._asker, telemetry, clock))
        if not answers:
            return CallStaff(equipment, tuple(attendants))
        asides = Asides(record, self._aside_asker, self._pictures, admit, telemetry, clock)
        return CallStaff(equipment, (*attendants, asides), asides)
