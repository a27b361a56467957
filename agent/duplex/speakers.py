"""Who is to speak an answer that was asked for outside of a call."""

from agent.duplex.answer_speech import Speaker
from agent.duplex.call_parts import CallParts
from agent.errors import UnsupportedError


def find_speaker(parts: CallParts, voice: str, language: str, param: str) -> Speaker:
    """The voice of that id; where it is empty, the first one of the language.

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
    key = parts.voices.resolve(voice, language)
    return Speaker(parts.voices.duplex(key), lambda: vocoder.open(key))
