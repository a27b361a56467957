"""The agent's voice as aiortc pulls it."""

from collections.abc import Callable

from aiortc import RTCRtpSender
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from agent.clock import Clock
from agent.interfaces import SpeechSource
from agent.transport import aiortc_inside
from agent.transport.tracks import (
    SILENCE,
    SendGrid,
    SentPositions,
    Unencoded,
    WireForm,
    WireFrame,
)
from agent.types import SPEECH_FRAME_SAMPLES


class VoiceTrack(MediaStreamTrack):
    """The agent's voice; aiortc pulls it, and it paces itself against an absolute start."""

    kind = "audio"

    def __init__(self, clock: Clock, late: Callable[[], None]) -> None:
        super().__init__()
        self.source: SpeechSource | None = None
        self.sender: RTCRtpSender | None = None
        self.form: WireForm = Unencoded()
        self.sent = SentPositions()
        self._grid = SendGrid(clock, late)
        self._pulled = 0

    async def recv(self) -> WireFrame:
        if self.readyState != "live":
            raise MediaStreamError
        self._note_last()
        slot = await self._grid.next_slot()
        if self.source is None:
            return self.form.form(SILENCE, slot)
        self._pulled += SPEECH_FRAME_SAMPLES
        return self.form.form(self.source.pull(), slot)

    def _note_last(self) -> None:
        """By the time the next packet is asked for, the one before it is out."""
        timestamp = aiortc_inside.last_timestamp(self.sender) if self.sender else None
        if timestamp is not None and self._pulled:
            self.sent.note(timestamp, self._pulled - SPEECH_FRAME_SAMPLES)
