"""The vocoders by name, each behind the one seam that the rest of the agent knows.

vocoder = load_vocoder("cosyvoice2", folder, settings, find_prompt=voices.prompt)
stream = vocoder.open("anna")
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args
from weakref import WeakKeyDictionary

from agent.errors import ConfigError
from agent.interfaces import VocoderBatch, VocoderPush, VocoderStream
from agent.torch_parts.checkpoint import Target
from agent.types import SPEECH_RATE_HZ, FloatArray
from agent.vocoder.config import TOKEN_SAMPLES
from agent.vocoder.cosyvoice2_loading import Cosyvoice2Settings, load_cosyvoice2
from agent.vocoder.loading import Token2wavSettings, load_token2wav
from agent.vocoder.token2wav import LEAD_TOKENS
from agent.vocoder.voice import SpeakerPrompt

VocoderName = Literal["token2wav", "cosyvoice2"]
FindPrompt = Callable[[str], SpeakerPrompt]
"""The prompt of a voice by its name; raises what the caller of `open` is to hear of it.

As long as it gives the same object the voice is the same; what is made of it lives as long as that.
"""
VoiceT = TypeVar("VoiceT")


@dataclass(frozen=True, slots=True)
class VocoderSettings:
    """What may be chosen of each vocoder."""

    token2wav: Token2wavSettings = field(default_factory=Token2wavSettings)
    cosyvoice2: Cosyvoice2Settings = field(default_factory=Cosyvoice2Settings)


class Speaking(Protocol[VoiceT]):
    """What every vocoder is: voices prepared once, streams that share them."""

    def voice(self, prompt: SpeakerPrompt, name: str) -> VoiceT:
        """Compute what of a voice does not depend on what it says."""
        ...

    def open(self, voice: VoiceT) -> VocoderStream:
        """A stream for one turn in that voice."""
        ...

    def whole(self, voice: VoiceT, tokens: Sequence[int]) -> FloatArray:
        """An utterance at once."""
        ...

    @property
    def most_pushes(self) -> int:
        """How many go together."""
        ...

    def begin(self, pushes: Sequence[VocoderPush]) -> VocoderBatch:
        """Begin to make the sound of many streams; one batch at a time."""
        ...


class VoicedVocoder(Generic[VoiceT]):
    """A `BatchVocoder`: it knows voices by name, and keeps each ready as long as its prompt lives.

    Who finds the prompts decides how many there are, and so how much of the device's memory they
    take. For one thread.
    """

    def __init__(self, speaking: Speaking[VoiceT], find_prompt: FindPrompt, *, lag_ms: int) -> None:
        self.speaking = speaking
        self._find_prompt = find_prompt
        self._lag_ms = lag_ms
        self._prepared: WeakKeyDictionary[SpeakerPrompt, VoiceT] = WeakKeyDictionary()

    @property
    def lag_ms(self) -> int:
        """How much of a turn's sound comes before that of its first token."""
        return self._lag_ms

    def open(self, voice: str) -> VocoderStream:
        """A stream for one turn in that voice; to give it up, drop it."""
        return self.speaking.open(self._ready(voice))

    @property
    def most_pushes(self) -> int:
        """How many go together."""
        return self.speaking.most_pushes

    def begin(self, pushes: Sequence[VocoderPush]) -> VocoderBatch:
        """See `BatchVocoder`."""
        return self.speaking.begin(pushes)

    def whole(self, voice: str, tokens: Sequence[int]) -> FloatArray:
        """An utterance at once f32 [T] at 24 kHz. `VocoderError`."""
        return self.speaking.whole(self._ready(voice), tokens)

    def prepare(self, voice: str) -> None:
        """Have a voice ready before it is wanted. A voice that changed is prepared anew."""
        # Some 70 ms on an H200, 365 ms for the first prompt of its length: others' calls, which
        # wait for the same thread, have a second's sound in hand.
        self._ready(voice)

    def _ready(self, voice: str) -> VoiceT:
        prompt = self._find_prompt(voice)
        ready = self._prepared.get(prompt)
        if ready is None:
            # The text alone: a key may hold the prompt, and would keep what is filed under it.
            ready = self.speaking.voice(prompt, str(voice))
            self._prepared[prompt] = ready
        return ready


def names() -> tuple[str, ...]:
    """The vocoders that there are."""
    return get_args(VocoderName)


def load_vocoder(
    name: str, folder: Path, settings: VocoderSettings, target: Target, find_prompt: FindPrompt
) -> VoicedVocoder[Any]:
    """The vocoder of that name from its checkpoint's folder.

    `target.dtype` is the flow's. ConfigError for a name that is none; CheckpointError when the
    folder is not that vocoder's.
    """
    load = _LOADERS.get(name)
    if load is None:
        raise ConfigError(f"vocoder is {name!r}, expected one of: {', '.join(names())}")
    return load(folder, settings, target, find_prompt)


def _load_token2wav(
    folder: Path, settings: VocoderSettings, target: Target, find_prompt: FindPrompt
) -> VoicedVocoder[Any]:
    heard = LEAD_TOKENS if settings.token2wav.stream.lead == "heard" else 0
    return VoicedVocoder(
        load_token2wav(folder, settings.token2wav, target),
        find_prompt,
        lag_ms=1000 * heard * TOKEN_SAMPLES // SPEECH_RATE_HZ,
    )


def _load_cosyvoice2(
    folder: Path, settings: VocoderSettings, target: Target, find_prompt: FindPrompt
) -> VoicedVocoder[Any]:
    loaded = load_cosyvoice2(folder, settings.cosyvoice2, target)
    return VoicedVocoder(loaded, find_prompt, lag_ms=0)


_LOADERS: Mapping[
    str, Callable[[Path, VocoderSettings, Target, FindPrompt], VoicedVocoder[Any]]
] = {"token2wav": _load_token2wav, "cosyvoice2": _load_cosyvoice2}
