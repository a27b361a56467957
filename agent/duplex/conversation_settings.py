"""How one conversation behaves, and what it says of each unit."""

from dataclasses import dataclass, field

from agent.duplex.policy import SPEECH_LAG_MS, Outcome, SpeakingRules
from agent.duplex.sampling import SpeechSampling, TextSampling
from agent.duplex.tool_calls import WrittenCall
from agent.duplex.tool_use import ToolUse
from agent.duplex.window import WindowSettings


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """Everything about one conversation that is not the model; may change between units.

    `speaks` False: text only, and the speech LM rests. `speech_lag_ms`: how much of a turn's sound
    comes before its first speech token, by the vocoder in use. `seed` None: other words every time.
    `most_tokens` bounds a turn's text, calls of functions counted; None: only the rules do.
    """

    text: TextSampling = field(default_factory=TextSampling)
    speech: SpeechSampling = field(default_factory=SpeechSampling)
    rules: SpeakingRules = field(default_factory=SpeakingRules)
    window: WindowSettings = field(default_factory=WindowSettings)
    max_slices: int = 1
    speaks: bool = True
    speech_lag_ms: int = SPEECH_LAG_MS
    seed: int | None = None
    most_tokens: int | None = None
    tools: ToolUse = field(default_factory=ToolUse)
    parity: bool = False
    """Text is decoded unit by unit, even through a letter, and keys are moved by exact
    frequencies whatever the model's are: as the reference does. See the policy's and the
    sampler's own `parity`; `reference_settings` has all of them."""


def reference_settings() -> ConversationSettings:
    """The public demo's behaviour, mistakes and all."""
    return ConversationSettings(
        text=TextSampling(parity=True),
        rules=SpeakingRules(max_turn_units=0, max_silent_units=0, parity=True),
        window=WindowSettings(mode="off"),
        parity=True,
    )


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What became of unit `unit`: its outcome, the text that is complete, its speech tokens."""

    unit: int
    outcome: Outcome
    text: str
    speech_tokens: tuple[int, ...]
    context_tokens: int
    stage_ms: tuple[tuple[str, float], ...] = ()
    call: WrittenCall | None = None
    """That it completed."""
