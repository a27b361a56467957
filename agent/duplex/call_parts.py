"""What all calls on the model share, and how a client's settings become a conversation's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from agent.duplex.conversation_settings import ConversationSettings, reference_settings
from agent.duplex.heard_voices import NoVoices, Voices
from agent.duplex.lanes import Runner
from agent.duplex.policy import Calls, listen_bias
from agent.duplex.prompt import DuplexPrompt, duplex_prompt, duplex_system
from agent.duplex.tokens import Vocabulary
from agent.duplex.tool_prompt import tool_block
from agent.duplex.tool_use import ToolUse
from agent.duplex.window import WindowSettings
from agent.interfaces import Vocoder, VoiceKey
from agent.types import SessionSettings

_SEMANTIC_EAGERNESS = {"low": 0.25, "medium": 0.5, "high": 0.75}


@dataclass(frozen=True, slots=True)
class CallParts:
    """What all calls share. `vocoder` opens its streams by the keys of `voices`.

    `script` gives every token that would be drawn, for each conversation anew: for tests, which
    decide for the model.
    """

    runner: Runner
    voices: Voices = field(default_factory=NoVoices)
    vocoder: Vocoder | None = None
    window: WindowSettings = field(default_factory=WindowSettings)
    parity: bool = False
    seed: int | None = None
    script: Callable[[], Iterator[int]] | None = None


@dataclass(frozen=True, slots=True)
class CallVoices:
    """Whose voice a call has: `spoken` is the vocoder's, the model hears `heard` in its prompt."""

    spoken: VoiceKey
    heard: VoiceKey
    asked: tuple[str, str, str]
    """What they were found by: other settings may ask for the same."""

    @classmethod
    def of(cls, parts: CallParts, settings: SessionSettings) -> "CallVoices":
        """RequestError for a voice that there is not. Without a choice it is the language's."""
        find, prompt = parts.voices.resolve, settings.prompt_voice
        spoken = find(settings.voice, settings.language)
        heard = find(prompt, settings.language) if prompt else spoken
        return cls(spoken, heard, cls.asked_by(settings))

    def updated(self, parts: CallParts, settings: SessionSettings) -> "CallVoices":
        """The same while nothing else is asked for, whatever became of a name meanwhile."""
        return self if self.asked_by(settings) == self.asked else CallVoices.of(parts, settings)

    @staticmethod
    def asked_by(settings: SessionSettings) -> tuple[str, str, str]:
        """What the voices are found by."""
        return settings.voice, settings.prompt_voice, "" if settings.voice else settings.language


def conversation_settings(parts: CallParts, settings: SessionSettings) -> ConversationSettings:
    """How a conversation behaves by what the client set; RequestError for what cannot be."""
    base = reference_settings() if parts.parity else ConversationSettings(window=parts.window)
    detection = settings.turn_detection
    eagerness = settings.eagerness
    if detection is not None and detection.kind == "semantic_vad":
        eagerness = _SEMANTIC_EAGERNESS.get(detection.eagerness, eagerness)
    speaks = parts.vocoder is not None and "audio" in settings.output_modalities
    tools = ToolUse.of(settings.tools, settings.tool_choice)
    calls: Calls = "banned" if tools.is_banned else "free" if tools.names else "unknown"
    return replace(
        base,
        rules=replace(base.rules, max_turn_tokens=settings.max_output_tokens, calls=calls),
        text=replace(base.text, listen_bias=listen_bias(eagerness)),
        max_slices=settings.max_slices,
        speaks=speaks,
        speech_lag_ms=parts.vocoder.lag_ms if parts.vocoder is not None else 0,
        seed=parts.seed,
        most_tokens=settings.max_output_tokens,
        tools=tools,
    )


def call_prompt(vocabulary: Vocabulary, settings: SessionSettings, *, camera: bool) -> DuplexPrompt:
    """The prompt of a duplex call; RequestError for functions that cannot be written."""
    system = settings.instructions or duplex_system(settings.language, camera=camera)
    return duplex_prompt(vocabulary, system, tool_block(vocabulary, settings.tools))
