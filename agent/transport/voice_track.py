"""The agent's voice as aiortc pulls it."""

from collections.abc import Callable

import av
from aiortc import RTCRtpSender
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from agent.clock import Clock
from agent.interfaces import SpeechEncoder, SpeechSource
from agent.transport import aiortc_inside
from agent.transport.tracks import SILENCE, WIRE_FRAME_SAMPLES, Frames, SendGrid, SentPositions
from agent.types import SPEECH_FRAME_SAMPLES, FloatArray


class VoiceTrack(MediaStreamTrack):
    """The agent's voice, which paces itself against an absolute start.

    With an `encoder` it gives packets (`next_payload`), else frames that aiortc encodes (`recv`).
    """

    kind = "audio"

    def __init__(self, clock: Clock, late: Callable[[], None]) -> None:
        super().__init__()
        self.source: SpeechSource | None = None
        self.sender: RTCRtpSender | None = None
        self.encoder: SpeechEncoder | None = None
        self.sent = SentPositions()
        self._frames = Frames()
        self._grid = SendGrid(clock, late)
        self._pulled = 0

    async def recv(self) -> av.AudioFrame:
        """The next 20 ms for a codec of aiortc's."""
        timestamp = aiortc_inside.last_timestamp(self.sender) if self.sender else None
        if timestamp is not None:
            # By the time the next packet is asked for, the one before it is out.
            self.note_sent(timestamp)
        slot = await self._next_slot()
        return self._frames.form(self._pull(), slot)

    async def next_payload(self) -> tuple[bytes, int]:
        """The next 20 ms as we encode them, and their first tick at 48 kHz since the start."""
        slot = await self._next_slot()
        assert self.encoder is not None, "the codec is not chosen yet"
        return self.encoder.encode(self._pull()), slot * WIRE_FRAME_SAMPLES

    def note_sent(self, timestamp: int) -> None:
        """The packet given last went out under that RTP timestamp."""
        if self._pulled:
            self.sent.note(timestamp, self._pulled - SPEECH_FRAME_SAMPLES)

    async def _next_slot(self) -> int:
        if self.readyState != "live":
            raise MediaStreamError
        return await self._grid.next_slot()

    def _pull(self) -> FloatArray:
        if self.source is None:
            return SILENCE
        self._pulled += SPEECH_FRAME_SAMPLES
        return self.source.pull()
