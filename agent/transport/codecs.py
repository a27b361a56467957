"""Which decoder and which encoder a codec has."""

from agent.interfaces import AudioDecoder, SpeechEncoder
from agent.transport.opus import OpusDecoder, OpusEncoder


def audio_decoder(mime_type: str, clock_rate_hz: int) -> AudioDecoder:
    """The decoder."""
    return OpusDecoder()


def speech_encoder() -> SpeechEncoder:
    """The encoder of Opus."""
    return OpusEncoder()
