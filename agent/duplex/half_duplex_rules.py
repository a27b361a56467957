"""How a half-duplex conversation answers: its numbers, and the samplers made of them."""

from dataclasses import dataclass, field, replace

from agent.duplex.chat_sampling import AnswerSampler, AnswerSampling, banned_in_answers
from agent.duplex.conversation_settings import ConversationSettings
from agent.duplex.model import DuplexModel
from agent.duplex.sampling import SpeechSampling
from agent.duplex.tokens import Token
from agent.duplex.window import WindowSettings

ENDS = frozenset({int(Token.TTS_EOS), int(Token.IM_END)})
"""What ends an answer; never fed."""


@dataclass(frozen=True, slots=True)
class HalfDuplexRules:
    """What a half-duplex conversation has beside `ConversationSettings`; the demo's own numbers.

    Greedy, temperature, top-p and length penalty come from the settings' `text`; its other numbers,
    the settings' `rules` and `window` are of duplex calls.
    """

    max_tokens: int = 256
    thinking: bool = False
    tts_template: bool = True
    """Answers begin with `<|tts_bos|>`, spoken or not: so the reference does."""
    top_k: int = 100
    repetition_penalty: float = 1.02
    looks_back: int = 128
    """Tokens of earlier chunks that count for the penalty."""
    max_call_tokens: int = 500
    """Speech tokens of a chunk, 20 s: one that finds no end by itself ends there."""
    speech_top_p: float = 0.85
    speech_top_k: int = 25
    window: WindowSettings = field(
        default_factory=lambda: WindowSettings(mode="basic", high_tokens=8000, low_tokens=6000)
    )


def answer_sampler(
    model: DuplexModel,
    settings: ConversationSettings,
    rules: HalfDuplexRules,
    *,
    is_calling: bool = False,
) -> AnswerSampler:
    """How answers are drawn. What cannot be read aloud is banned where they are spoken, but not
    inside of calls: there, not where `is_calling`. `parity` bans it always."""
    text, device = settings.text, model.target.device
    bans = (settings.speaks and not is_calling) or settings.parity
    sampling = AnswerSampling(
        text.greedy,
        text.temperature,
        rules.top_k,
        text.top_p,
        rules.repetition_penalty,
        text.length_penalty,
    )
    banned = banned_in_answers(model, bans_calls=settings.tools.is_banned, mute=bans)
    return AnswerSampler(sampling, ENDS, device, banned)


def answer_speech(settings: ConversationSettings, rules: HalfDuplexRules) -> SpeechSampling:
    """How their speech tokens are drawn."""
    return replace(settings.speech, top_p=rules.speech_top_p, top_k=rules.speech_top_k)
