"""The voices of a call, where whoever opens it may use some only."""

from collections.abc import Mapping
from dataclasses import replace

from agent.api.caller import Caller
from agent.realtime.settings import OPENAI_VOICES
from agent.types import Abilities, SessionSettings


def with_their_voice(
    settings: SessionSettings, caller: Caller, abilities: Abilities
) -> SessionSettings:
    """What calls begin with, in a voice that `caller` may use. `VoiceForbidden`."""
    if not caller.voices:
        return settings
    voice, manner = (
        each if each in caller.voices else "" for each in (settings.voice, settings.prompt_voice)
    )
    return replace(settings, voice=caller.voice(voice, abilities), prompt_voice=manner)


def expect_voice(session: object, caller: Caller, abilities: Abilities) -> None:
    """`VoiceForbidden` for a voice that others may use; of unknown ones parsing tells."""
    voice: object = session
    for name in ("audio", "output", "voice"):
        voice = voice.get(name) if isinstance(voice, Mapping) else None
    if isinstance(voice, Mapping):
        voice = voice.get("id")
    # Stock clients name one of OpenAI's unasked, which an engine that has not got it passes over.
    if isinstance(voice, str) and (voice in abilities.voices or voice not in OPENAI_VOICES):
        caller.voice(voice, abilities)
