"""What one call is made of."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.interfaces import Attendant, Conversation, EventMicrophone, Transport
from agent.media.front_end import FrontEnd
from agent.media.playout import Playout
from agent.realtime import AnswerAside, RealtimeCall


@dataclass(frozen=True, slots=True)
class CallParts:
    """All of it belongs to this call alone.

    `event_microphone` where sound comes and goes inside of events, and not by tracks of the
    transport's; the playout has no fades then. `answer_aside` answers out of band.
    """

    protocol: RealtimeCall
    transport: Transport
    conversation: Conversation
    front_end: FrontEnd
    playout: Playout
    event_microphone: EventMicrophone | None = None
    attendants: tuple[Attendant, ...] = ()
    answer_aside: Callable[[AnswerAside], None] = lambda _: None
