"""How what a half-duplex conversation reads is written: the prompt piece by piece."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from agent.chat_types import ChatPart, ChatSound
from agent.duplex.content import defused_answer
from agent.duplex.lanes import Runner
from agent.duplex.prompt import (
    ChatLayout,
    Content,
    LaidOut,
    Message,
    SoundSpan,
    lay_out,
    opening_segments,
    system_content,
)
from agent.errors import RequestError
from agent.types import SessionSettings

SHORTEST_SAMPLES = 16_560
"""A turn's first sound is padded in front to this much, 1035 ms."""


def lay_out_opening(runner: Runner, system: Message | None, tools: str = "") -> LaidOut:
    """The system message of a conversation that begins, and behind it what stands of functions;
    RequestError when it is too long."""
    if system is None:
        return LaidOut((), (), ())
    vocabulary, positions = runner.model.vocabulary, runner.slots.llm.positions
    content = tuple(
        defused_answer(vocabulary, part) if isinstance(part, str) else part
        for part in system.content
    )
    opening = opening_segments(
        replace(system, content=content), ChatLayout(joined=True, tools=tools)
    )
    laid = lay_out_turn(runner, opening)
    if len(laid.ids) > positions // 2:
        raise RequestError(
            f"the system prompt takes {len(laid.ids)} of {positions} tokens; at most half of "
            "them may be used for it",
            param="instructions",
        )
    return laid


def lay_out_turn(runner: Runner, segments: Sequence[Content]) -> LaidOut:
    """What comes next of a conversation."""
    layout = ChatLayout(max_tokens=1 << 40)  # what does not fit is refused, not cut
    return lay_out(runner.model.vocabulary, segments, layout)


def with_silence(parts: Sequence[ChatPart]) -> list[ChatPart]:
    """A turn's content, silence before its first sound as far as that is too short."""
    padded = list(parts)
    sounds = [index for index, part in enumerate(padded) if isinstance(part, ChatSound)]
    first = padded[sounds[0]] if sounds else None
    if isinstance(first, ChatSound) and first.samples.ndim == 1 and len(first.samples):
        missing = max(0, SHORTEST_SAMPLES - len(first.samples))
        padded[sounds[0]] = ChatSound(np.pad(first.samples, (missing, 0)))
    return padded


def call_system(settings: SessionSettings, voice: Tensor | None) -> Message:
    """The system message: the client's own, or that of an assistant in the session's language.

    Where there is a voice, the client's own words follow it as the model was trained to hear of
    somebody whom it is to be.
    """
    span = None if voice is None else SoundSpan(len(voice))
    if not settings.instructions:
        return Message("system", system_content("assistant", settings.language, span))
    if span is None:
        return Message("system", (settings.instructions,))
    return Message(
        "system", system_content("clone", settings.language, span, settings.instructions)
    )


def prompted_by(settings: SessionSettings) -> tuple[str, ...]:
    """What of the settings stands in the system prompt."""
    return settings.instructions, settings.language, settings.voice, settings.prompt_voice
