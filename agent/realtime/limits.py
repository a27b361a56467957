"""How much one client may make the protocol remember or read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.realtime.events import Event, server_event


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How much of something the client may still use, as `rate_limits.updated` tells it."""

    name: Literal["requests", "tokens"]
    limit: int
    remaining: int
    reset_s: float


Allowance: TypeAlias = Callable[[], Sequence[RateLimit]]
"""What the client may still use; empty where nothing is limited."""


def with_limits(events: Sequence[Event], allowance: Allowance) -> list[Event]:
    """`events`, and behind the beginning of each response how much the client may still use."""
    told: list[Event] = []
    for event in events:
        told.append(event)
        if event["type"] == "response.created" and (limits := allowance()):
            told.append(_updated(limits))
    return told


def _updated(limits: Sequence[RateLimit]) -> Event:
    each = [
        {
            "name": limit.name,
            "limit": limit.limit,
            "remaining": limit.remaining,
            "reset_seconds": round(limit.reset_s, 3),
        }
        for limit in limits
    ]
    return server_event("rate_limits.updated", rate_limits=each)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one call; what happens beyond each is said beside it."""

    max_message_bytes: int = 256 * 1024
    """A longer client event is refused unread."""
    max_sideband_bytes: int = 256 * 1024
    """The same, where it does not come from the call's own client."""
    max_depth: int = 64
    """A client event nested deeper is refused."""
    max_values: int = 65_536
    """A client event with more commas and brackets is refused unread: it might hold that many
    values, and to look at each of a million keeps all other calls waiting."""
    max_text_chars: int = 32_768
    """Longer text of one item from the client is refused."""
    max_item_parts: int = 128
    """More parts in one item are refused, and none of them is looked at."""
    max_item_pictures: int = 16
    """More pictures in one item are refused."""
    max_item_sound_s: int = 30
    """Longer sound of one item is refused: it is unpacked where other calls wait meanwhile."""
    max_items: int = 2_000
    """Beyond it the oldest item is forgotten: `retrieve` no longer finds it."""
    max_items_chars: int = 4_000_000
    """The text of all items together: beyond it the oldest are forgotten, too, but the newest."""
    max_pieces: int = 4_096
    """Text deltas timed one by one in a turn; later ones share the start of the last."""
    max_transcript_chars: int = 200_000
    """What a turn says beyond it is still streamed, but not kept for `retrieve`."""
    max_responses: int = 32
    """Beyond it the oldest response is forgotten: its playout is no longer reported."""
    max_waiting: int = 1_024
    """Engine events held while an earlier turn waits for its playout; beyond it that turn is told
    as if it were on and sent: of what is sent inside of events, the rest is lost."""
    max_asides: int = 4
    """Out-of-band responses under way; more are refused."""
    max_context_items: int = 64
    """The newest of the conversation, which an out-of-band response is shown that names none."""
    max_context_chars: int = 12_000
    """Of the text of these; a third to a half of what the model's prompt takes."""
    max_waiting_calls: int = 16
    """Function calls beside all turns that wait for a response to be done; more are not made."""
    max_commands: int = 64
    """Recent commands whose client `event_id` is known, and recent updates of the session that can
    be taken back, should the engine refuse one."""
