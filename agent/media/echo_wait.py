"""How long to wait, once the agent has fallen silent: for its echo to go, and for another word."""

from agent.types import MIC_RATE_HZ

_SAMPLES_PER_MS = MIC_RATE_HZ // 1000
_UNKNOWN_DELAY_MS = 120.0
_ROOM_MS = 130.0
"""So long after the echo's delay the room still rings."""
_LISTEN_MS = 60.0
"""So long after the echo's delay something of a voice that was hidden by it must be heard."""
_LISTEN_LONGER_MS = 160.0
"""The same where the canceller has left nothing of it before."""
_GAP_MS = 215.0
"""Of the 300 ms of a good gap, what is left for the way there and back and for waiting."""
_LEAST_RESUME_MS = 64.0


def echo_hides(ducked_samples: int, delay_ms: float) -> bool:
    """Whether the agent, silent for so long, may still be heard, or the room after it.

    `delay_ms` of the echo, here and below: 0 while unknown.
    """
    return ducked_samples < _after_echo(delay_ms, _ROOM_MS)


def has_listened(ducked_samples: int, delay_ms: float, *, unheard: bool) -> bool:
    """Whether a voice would have been heard by now, `unheard` as it was until then."""
    longer_ms = _LISTEN_LONGER_MS if unheard else _LISTEN_MS
    return ducked_samples >= _after_echo(delay_ms, longer_ms)


def pause_samples(longest_ms: float, delay_ms: float) -> float:
    """How long to wait in silence for another word: less where the way to the page is long,
    so that the agent is heard again within 300 ms."""
    if not delay_ms:
        return longest_ms * _SAMPLES_PER_MS
    return min(longest_ms, max(_LEAST_RESUME_MS, _GAP_MS - delay_ms)) * _SAMPLES_PER_MS


def _after_echo(delay_ms: float, longer_ms: float) -> float:
    return ((delay_ms or _UNKNOWN_DELAY_MS) + longer_ms) * _SAMPLES_PER_MS
