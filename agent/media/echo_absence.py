"""Whether the agent's voice comes back at all: not with headphones, nor where a client cancels it.

AEC3 takes it for granted that there is an echo. Where there is none it hides the user's voice for
the first seconds of the agent's, and makes it hard to interrupt. So this looks for its absence: the
agent has spoken, long enough for the latest echo to be back, and the microphone stayed as quiet
as the room is. A user who speaks meanwhile only puts that off.
"""

import numpy as np

LATEST_ECHO_S = 1.2
"""Loudspeakers a second away are known, and so is the room around them."""
_LAG_SLOTS = 10
_LAGS = int(LATEST_ECHO_S * 100) // _LAG_SLOTS + 1
_LOUD_POWER = 10**-3.6
"""−36 dBFS: speech, not its pauses."""
_ENOUGH_SLOTS = 25
"""So much loud speech must have met a quiet microphone, whatever the delay."""
_QUIET_POWER = 10**-6.2
"""−62 dBFS: whatever it is, nobody takes it for speech."""
_OVER_FLOOR = 10**0.6
_FLOOR_RISES = 1.001
"""Each 10 ms: half a decibel a second."""
_LOUD_RUN = 3
_STRAY_SHARE = 0.1


class EchoAbsence:
    """Follows both ends, 10 ms at a time; `is_known` once there is no echo, as far as heard."""

    def __init__(self) -> None:
        self._sent = np.zeros(_LAGS * _LAG_SLOTS, np.bool_)
        self._met = np.zeros(_LAGS, np.int64)
        self._slots = 0
        self._strays = 0
        self._loud_run = 0
        self._floor = 1.0
        self.is_known = False

    def push(self, near_power: float, far_power: float, *, found: bool) -> None:
        """10 ms: the mean squares of the microphone and of what was sent meanwhile.

        `found`: somebody else has found an echo.
        """
        self._sent[1:] = self._sent[:-1]
        self._sent[0] = far_power > _LOUD_POWER
        self._floor = min(max(near_power, _QUIET_POWER / _OVER_FLOOR), self._floor * _FLOOR_RISES)
        if found:
            self.is_known = False
            self._begin_anew()
        elif not self.is_known:
            self._weigh(near_power > max(_QUIET_POWER, self._floor * _OVER_FLOOR))

    def _weigh(self, is_loud: bool) -> None:
        if not self._sent.any():
            return
        self._loud_run = self._loud_run + 1 if is_loud else 0
        self._strays += is_loud
        if self._loud_run >= _LOUD_RUN:
            self._begin_anew()
            return
        self._slots += 1
        self._met += self._sent[::_LAG_SLOTS]
        few_strays = self._strays <= _STRAY_SHARE * self._slots
        self.is_known = few_strays and bool((self._met >= _ENOUGH_SLOTS).all())

    def _begin_anew(self) -> None:
        self._met[:] = 0
        self._slots = self._strays = 0
