"""The turns of a call as responses: what each thing that happens leads to, if it is its time.

`Responses` knows whether it is.
"""

from collections import OrderedDict
from typing import Literal, TypeAlias

from agent.commands import Interrupt
from agent.errors import RequestError
from agent.realtime.events import Event, new_id
from agent.realtime.items import Items, SpokenItem, ToolCallItem
from agent.realtime.limits import Limits
from agent.realtime.response import Asked, Response, Status, StopReason
from agent.types import SPEECH_RATE_HZ, SessionSettings, ToolCalled, TurnEnded, Usage, Wire

ClearReason: TypeAlias = Literal["turn_detected", "client_cancelled"]


class Turns:
    """All responses that may still be generated or played; older ones are forgotten."""

    def __init__(self, items: Items, limits: Limits, wire: Wire) -> None:
        self._items = items
        self._limits = limits
        self._wire = wire
        self._by_turn: OrderedDict[int, Response] = OrderedDict()
        self.conversation_id = new_id("conv")
        self.active: Response | None = None
        """The response that is not done yet, if there is one."""
        self.playing: Response | None = None
        """The response whose sound is being played, if there is one."""
        self.newest = 0
        """The number of the last turn that started; 0 before the first."""
        self.asked = Asked()
        """What the `response.create` said that asked for the next response."""
        self.request: Literal["none", "open", "withdrawn"] = "none"
        """Whether that response is still to begin, and whether it was cancelled before."""

    @property
    def writing(self) -> Response | None:
        """The response that goes out as text alone, if there is one."""
        active = self.active
        return active if active is not None and active.item.shape == "text" else None

    def get(self, turn: int) -> Response | None:
        """The response of that turn, unless it is forgotten."""
        return self._by_turn.get(turn)

    def last(self) -> Response | None:
        """The newest response; None before the first."""
        return next(reversed(self._by_turn.values()), None)

    def find(self, item_id: str, response_id: str) -> Response | None:
        """The response of that id, or whose message has that id."""
        kept = self._by_turn.values()
        return next((one for one in kept if item_id == one.item.id or response_id == one.id), None)

    def pending_sound(self) -> bool:
        """Whether there is sound queued or playing."""
        return any(response.pending_sound for response in self._by_turn.values())

    def to_cancel(self, response_id: str | None) -> Response:
        """The active response, if it is the one named; else `response_cancel_not_active`."""
        active = self.active
        if active is None or response_id not in (None, active.id):
            raise RequestError(
                "Cancellation failed: no such response is in progress.",
                param="response_id" if response_id is not None else None,
                code="response_cancel_not_active",
            )
        return active

    # ---- what was heard -----------------------------------------------------------------------

    def heard(self, turn: int, heard_ms: int) -> None:
        """So much of `turn` has sounded by now, all of those before it, of later ones nothing."""
        for response in self._by_turn.values():
            if response.pending_sound and response.turn >= turn:
                response.item.sounded_ms = max(0, heard_ms) if response.turn == turn else 0

    def truncate(self, item: SpokenItem, end_ms: int) -> list[Interrupt]:
        """The client heard no more than `end_ms` of `item`: cuts it there, within what there is.

        What the engine must be told: nothing of a turn before the last, whose answer it knows
        already, and nothing where this takes no sound away.
        """
        known_ms = item.cut_ms
        end_ms = item.cut(end_ms)
        response = self.last()
        if response is None or response.item is not item:
            return []
        generated = response.closed or response.ended is not None
        bound_ms = item.generated_ms if generated and known_ms is None else known_ms
        if bound_ms is not None and end_ms >= bound_ms:
            return []
        response.cut_by = "client_cancelled"
        return [Interrupt(response.turn, end_ms)]

    # ---- what the engine says -----------------------------------------------------------------

    def start(self, turn: int, settings: SessionSettings, *, is_asked: bool = True) -> list[Event]:
        """The agent begins to speak, because it was asked to, or of its own accord; a turn still
        open is given up."""
        if turn <= self.newest:
            return []
        self.newest = turn
        events: list[Event] = []
        if self.active is not None:
            events += self.close(self.active, "cancelled", "turn_detected")
        asked, is_withdrawn = self._take_request() if is_asked else (Asked(), False)
        response = self._new_response(turn, asked.applied(settings))
        response.metadata, response.withdrawn = asked.metadata, is_withdrawn
        if response.settings.output_modalities == ("text",):
            response.item.shape = "text"
        self._keep(response)
        return [*events, response.created()]

    def _take_request(self) -> tuple[Asked, bool]:
        """What was asked for, and whether that was taken back."""
        asked, is_withdrawn = self.asked, self.request == "withdrawn"
        self.drop_request()
        return asked, is_withdrawn

    def drop_request(self) -> None:
        """No answer comes to what was asked for."""
        self.asked, self.request = Asked(), "none"

    def _new_response(self, turn: int, settings: SessionSettings) -> Response:
        item = SpokenItem(new_id("item"), self._limits)
        return Response(turn, item, settings, self.conversation_id, self._wire)

    def _keep(self, response: Response) -> None:
        self.active = self._by_turn[response.turn] = response
        if len(self._by_turn) > self._limits.max_responses:
            _, forgotten = self._by_turn.popitem(last=False)
            forgotten.silence()
            self._forget_playing(forgotten)

    def _open(self, turn: int) -> Response | None:
        """The active response if it is that turn's and still being generated."""
        active = self.active
        if active is None or active.turn != turn or active.ended is not None:
            return None
        return active

    def say(self, turn: int, text: str) -> list[Event]:
        """A piece of what the agent says."""
        response = self._open(turn)
        if response is None or not text:
            return []
        events = self._announce(response)
        response.item.say(text)
        return [*events, response.delta(text)] if response.live else events

    def _announce(self, response: Response) -> list[Event]:
        """The message joins the conversation with its first word or sound."""
        if response.has_message:
            return []
        events = response.message_added(self._items.add(response.item))
        return [*events, response.part_added()] if response.item.shape == "text" else events

    def sound(self, turn: int, end_samples: int) -> list[Event]:
        """The turn has sound up to `end_samples` (24 kHz)."""
        response = self._open(turn)
        if response is None:
            return []
        item = response.item
        if not end_samples:
            return []
        item.generated_ms = max(item.generated_ms, end_samples * 1000 // SPEECH_RATE_HZ)
        response.drained = False
        return self._decide_audio(response)

    def took(self, turn: int, usage: Usage | None) -> None:
        """What the turn has taken by now, if the engine says so."""
        response = self._open(turn)
        if response is not None:
            response.took(usage)

    def end(self, end: TurnEnded) -> list[Event]:
        """Nothing more will be generated for the turn."""
        response = self._open(end.turn)
        if response is None:
            return []
        response.ended = end.reason
        if end.reason == "interrupted":
            response.took(end.usage)
        else:
            response.usage = end.usage
        dropped = 0 < response.item.generated_ms <= response.lost_ms
        if end.reason == "interrupted" or dropped:
            return self.close(response, "cancelled", response.cut_by)
        events = self._decide_text(response)
        if response.item.shape == "audio" and response.waits:
            return events
        return events + self.complete(response)

    def clear(self, turn: int, heard_ms: int, reason: ClearReason) -> list[Event]:
        """What is queued of the turn is dropped, of which `heard_ms` were heard."""
        response = self._by_turn.get(turn)
        if response is None or response.buffer == "stopped":
            return []
        if response.closed and not response.pending_sound:
            return []
        response.silence()
        self._forget_playing(response)
        events = response.buffered("cleared")
        if response.item.shape == "text":
            return events + self.close(response, "cancelled", reason)
        end_ms = response.item.cut(heard_ms)
        events += self.close(response, "cancelled", reason)
        events += response.truncated(end_ms)
        return events

    def call_tool(self, call: ToolCalled) -> list[Event]:
        """A function is called within its turn."""
        response = self._open(call.turn)
        if response is None:
            return []
        item = ToolCallItem(new_id("item"), call.call_id, call.name, call.arguments)
        return response.tool_call(item, self._items.add(item))

    def call_beside(self, call: ToolCalled, settings: SessionSettings) -> list[Event]:
        """A response that is nothing but this call."""
        response = self._new_response(0, settings)
        item = ToolCallItem(new_id("item"), call.call_id, call.name, call.arguments)
        events = [response.created(), *response.tool_call(item, self._items.add(item))]
        response.finish("completed")
        return [*events, response.finished()]

    def start_playing(self, response: Response) -> list[Event]:
        """Its first sample is on its way."""
        events = [] if response.closed else self._decide_audio(response)
        response.buffer = "playing"
        self.playing = response
        events += response.buffered("started")
        if response.closed:
            return events
        if response.item.shape == "audio":
            events += [response.delta(text) for _, text in response.item.pieces]
        if response.ended is not None and not response.waits:
            events += self.complete(response)
        return events

    def _decide_audio(self, response: Response) -> list[Event]:
        """The first sound makes the content part an audio part."""
        if response.item.shape != "undecided":
            return []
        events = self._announce(response)
        response.item.shape = "audio"
        return [*events, response.part_added()]

    def _decide_text(self, response: Response) -> list[Event]:
        """A turn that ends without a sound was text."""
        item = response.item
        if item.shape != "undecided" or not item.pieces:
            return []
        item.shape = "text"
        return [response.part_added(), *(response.delta(text) for _, text in item.pieces)]

    def complete(self, response: Response) -> list[Event]:
        """All of it was generated, and as far as need be played."""
        if response.ended == "max_tokens":
            response.finish("incomplete", "max_output_tokens")
        else:
            response.finish("completed")
        self.active = None
        return response.closing() + self._late_stop(response)

    def close(self, response: Response, status: Status, reason: StopReason | None) -> list[Event]:
        """It ends here; what was told of it is closed as in any other response."""
        if response.closed:
            return []
        response.finish(status, reason)
        if self.active is response:
            self.active = None
        return response.closing() + self._late_stop(response)

    def _late_stop(self, response: Response) -> list[Event]:
        return self.stop(response) if response.drained else []

    def stop(self, response: Response) -> list[Event]:
        """Its sound is over."""
        self._forget_playing(response)
        if response.buffer != "playing":
            return []
        response.silence()
        return response.buffered("stopped")

    def _forget_playing(self, response: Response) -> None:
        if self.playing is response:
            self.playing = None
