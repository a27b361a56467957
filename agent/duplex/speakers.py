"""Who is to speak an answer that was asked for outside of a call."""

from agent.duplex.answer_speech import Speaker
from agent.duplex.call_parts import CallParts
from agent.errors import CheckpointError, RequestError, UnsupportedError


def find_speaker(parts: CallParts, voice: str, param: str) -> Speaker:
    """The voice of that id, the first one where it is empty.

    UnsupportedError naming `param` where there is no vocoder, RequestError for a voice that there
    is not. A recording of the voice is heard in blocks, as all sounds of a chat are: so prompts
    of this kind were trained.
    """
    vocoder = parts.vocoder
    if vocoder is None:
        raise UnsupportedError(
            "the agent has no vocoder, so it answers in text only; install one to hear it",
            param=param,
        )
    key = parts.voices.resolve(voice)
    try:
        vectors = parts.voices.duplex(key)
    except CheckpointError as error:
        raise RequestError(f"the voice cannot be used: {error}", param="voice") from error
    return Speaker(vectors, lambda: vocoder.open(key))
