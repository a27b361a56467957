"""A unit as the LLM reads it: `<unit>`, its pictures, ten vectors of sound, what was typed."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.duplex.audio_encoder import BLOCK_FRAMES
from agent.duplex.content import listen
from agent.duplex.context import Context
from agent.duplex.memory import keep_audio
from agent.duplex.pictures import Patches, patch_picture
from agent.duplex.slots import Slots
from agent.duplex.tokens import Token
from agent.duplex.work import Hear, Look, Together, Work
from agent.errors import RequestError
from agent.types import UNIT_SAMPLES, Unit

MAX_PICTURES = 8
"""Pictures of a unit, those that were put in counted."""


@dataclass(frozen=True, slots=True)
class Sensed:
    """A unit's vectors [n, W], and how many of them are of sound and of pictures, without marks."""

    vectors: Tensor
    audio: int
    pictures: int


def sense(
    context: Context, slots: Slots, unit: Unit, max_slices: int
) -> Generator[Work, None, Sensed]:
    """What it brings, and what was put in with it. RequestError, before anything else.

    `max_slices` of the pictures that come with it.
    """
    memory = context.memory
    if len(unit.audio) != UNIT_SAMPLES:
        raise RequestError(f"a unit has {UNIT_SAMPLES} samples, not {len(unit.audio)}")
    if len(unit.pictures) + len(memory.pictures) > MAX_PICTURES:
        raise RequestError(f"a unit has at most {MAX_PICTURES} pictures")
    shown = [patch_picture(one.rgb, max_slices) for one in unit.pictures]
    pictures, memory.pictures = [*memory.pictures, *shown], ()
    seen = Look([piece for pieces in pictures for piece in pieces])
    keep_audio(memory, slots)
    (mel,) = memory.mel.push(unit.audio)
    heard = Hear(mel, memory.audio)
    yield Together([seen, heard]) if pictures else heard
    parts = [context.embed([Token.UNIT]), *_spans(context, pictures, seen.vectors), heard.vectors]
    recordings = yield from _recordings(context)
    put_in, memory.put_in = memory.put_in, ()
    if recordings:
        begin, end = context.embed([Token.AUDIO_START, Token.AUDIO_END])[:, None]
        for vectors in recordings:
            parts += [begin, vectors, end]
    if put_in:
        parts.append(context.embed(put_in))
    return Sensed(
        torch.cat(parts),
        len(heard.vectors) + sum(map(len, recordings)),
        sum(len(one) for one in seen.vectors),
    )


def _recordings(context: Context) -> Generator[Work, None, list[Tensor]]:
    """The vectors [n, W] of each recording that was put in, heard as the voice in the prompt is."""
    sounds, context.memory.sounds = context.memory.sounds, ()
    vectors = []
    for sound in sounds:
        vectors.append((yield from listen(sound, BLOCK_FRAMES)))
    return vectors


def _spans(
    context: Context, pictures: Sequence[Sequence[Patches]], vectors: Tensor
) -> Iterator[Tensor]:
    """The vectors of each thumbnail and cell between their marks. No ids, no newlines."""
    if not pictures:
        return
    marks = [Token.IMAGE, Token.END_IMAGE, Token.SLICE, Token.END_SLICE]
    begin, end, begin_cell, end_cell = context.embed(marks)[:, None]
    pieces = iter(vectors)
    for picture in pictures:
        for place in range(len(picture)):
            yield begin_cell if place else begin
            yield next(pieces)
            yield end_cell if place else end
