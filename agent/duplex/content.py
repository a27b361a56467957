"""What a turn-based message is made of: its parts checked, their places, and their vectors.

Sizes alone decide how many places a picture or a sound takes, so a prompt is laid out before
anything is looked at or listened to. Every recording is encoded by itself. The reference joins the
sounds of a message into one, and lengths that are no multiple of a vector then shift the vectors of
all that follow, or leave it one short; and it lets the shorter of two recordings see padding.
"""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from agent.chat_types import ChatPart, ChatPicture, ChatSound, ChatText, ChatVideo
from agent.duplex.audio_encoder import vector_count
from agent.duplex.mel import frame_count, offline_mel
from agent.duplex.model import DuplexModel
from agent.duplex.pictures import MAX_SLICES, Patches, check_picture, choose_grid, patch_picture
from agent.duplex.prompt import Content, LaidOut, PictureSpan, SoundSpan
from agent.duplex.tokens import Vocabulary
from agent.duplex.work import HearRecording, Look, Work
from agent.errors import RequestError
from agent.types import MIC_RATE_HZ, ByteArray, FloatArray

MAX_PICTURES = 64
"""Pictures of one request or turn, those of films counted."""
SECOND_VECTORS = 10
_THINK_MARKS = re.compile(r"(</?think>)")
LOOK_PIECES = 8
"""Thumbnails and cells that are looked at in one go; a call's unit can go between."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture [H, W, 3] that fits, and into how many tiles it may be cut."""

    rgb: ByteArray
    max_slices: int


@dataclass(slots=True)
class Senses:
    """Pictures and sounds of a request, in the order of their places."""

    max_slices: int | None = None
    """None: 9 for pictures, which were sent for a close look; 1 for those of films."""
    pictures: list[Picture] = field(default_factory=list)
    sounds: list[FloatArray] = field(default_factory=list)

    def add(self, part: ChatPart, vocabulary: Vocabulary) -> list[Content]:
        """The part as it is written; nothing in its text becomes a control token. RequestError."""
        match part:
            case ChatText():
                return [vocabulary.defused(part.text)]
            case ChatPicture():
                return [self.see(part.rgb, self._slices(MAX_SLICES))]
            case ChatSound():
                return [self.hear(part.samples)]
            case ChatVideo():
                return self._watch(part)

    def see(self, rgb: ByteArray, max_slices: int) -> PictureSpan:
        """One more picture [H, W, 3]; RequestError when it cannot be shown."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise RequestError(
                f"a picture is u8 [height, width, 3], not {rgb.dtype} {list(rgb.shape)}",
                param="image",
            )
        height, width = rgb.shape[:2]
        check_picture(width, height, max_slices)
        if len(self.pictures) >= MAX_PICTURES:
            raise RequestError(
                f"more than {MAX_PICTURES} pictures; leave some out, or send fewer a film",
                param="image",
            )
        self.pictures.append(Picture(rgb, max_slices))
        grid = choose_grid(width, height, max_slices)
        return PictureSpan(grid.rows, grid.columns) if grid else PictureSpan()

    def hear(self, samples: FloatArray) -> SoundSpan:
        """One more recording f32 [T] at 16 kHz; RequestError when it cannot be heard."""
        check_sound(samples)
        self.sounds.append(samples)
        return SoundSpan(vector_count(frame_count(len(samples))))

    def _slices(self, usual: int) -> int:
        return usual if self.max_slices is None else self.max_slices

    def _watch(self, film: ChatVideo) -> list[Content]:
        """Second by second a picture and the sound of it, which is one recording."""
        seen = [self.see(rgb, self._slices(1)) for rgb in film.pictures]
        heard = self.hear(film.samples).vectors if len(film.samples) else 0
        if not seen and not heard:
            raise RequestError("the film has neither pictures nor sound", param="video")
        sounds = [
            SoundSpan(min(SECOND_VECTORS, heard - start))
            for start in range(0, heard, SECOND_VECTORS)
        ]
        seconds = zip_longest(seen, sounds)
        return [span for second in seconds for span in second if span is not None]


def check_samples(samples: FloatArray) -> None:
    """RequestError when these are no samples f32 [T], or not all of them are numbers."""
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise RequestError(
            f"sound is f32 [T] at {MIC_RATE_HZ} Hz, not {samples.dtype} {list(samples.shape)}",
            param="audio",
        )
    if not np.isfinite(samples).all():
        raise RequestError(
            "the recording holds values that are no numbers; send samples of -1 to 1", param="audio"
        )


def check_sound(samples: FloatArray) -> None:
    """RequestError when this recording at 16 kHz is none, or too short for a single vector."""
    check_samples(samples)
    if not vector_count(frame_count(len(samples))):
        raise RequestError(
            f"a recording of {len(samples)} samples is too short; send at least 0.1 s",
            param="audio",
        )


def defused_answer(vocabulary: Vocabulary, text: str) -> str:
    """An earlier answer without control tokens but the marks of its reasoning."""
    parts = _THINK_MARKS.split(text)
    return "".join(
        part if index % 2 else vocabulary.defused(part) for index, part in enumerate(parts)
    )


# ---- vectors ------------------------------------------------------------------------------------


def perceive(
    model: DuplexModel, laid: LaidOut, senses: Senses, block_frames: int | None
) -> Generator[Work, None, Tensor]:
    """Look and listen → a prompt's vectors [T, W], its places filled.

    `block_frames` as in `Ears.hear_recordings`.
    """
    embeddings = model.llm.embed(laid.ids).detach()
    seen: list[Tensor] = []
    for pieces in _looks(senses.pictures):
        look = Look(pieces)
        yield look
        seen += look.vectors
    fill(embeddings, laid.picture_bounds, seen)
    heard: list[Tensor] = []
    for sound in senses.sounds:
        heard += yield from listen(sound, block_frames)
    fill(embeddings, laid.sound_bounds, heard)
    return embeddings


def listen(sound: FloatArray, block_frames: int | None) -> Generator[Work, None, Tensor]:
    """The vectors [n, W] of a recording f32 [T] at 16 kHz of any length."""
    vectors = []
    for mel in offline_mel(sound):
        hearing = HearRecording(mel, block_frames)
        yield hearing
        vectors.append(hearing.vectors)
    return torch.cat(vectors)


def hear_whole(model: DuplexModel, samples: FloatArray) -> Tensor:
    """A reference voice f32 [T] at 16 kHz for a half-duplex system message: [n, W].

    Every frame sees every other there; `DuplexModel.hear_voice` is for duplex and chat prompts,
    which were trained with blocks.
    """
    return torch.cat(model.ears.hear_recordings(offline_mel(samples), None))


def fill(embeddings: Tensor, bounds: Sequence[tuple[int, int]], vectors: Sequence[Tensor]) -> None:
    """Put vectors into the half-open bounds in `embeddings` [T, W], in order.

    Each of `vectors` is of any length [n, W] or [W]; together they fill the bounds exactly.
    """
    places = sum(stop - start for start, stop in bounds)
    flat = torch.cat([one.reshape(-1, embeddings.shape[1]) for one in vectors] or [embeddings[:0]])
    if len(flat) != places:
        raise ValueError(f"{len(flat)} vectors for {places} places")
    begin = 0
    for start, stop in bounds:
        embeddings[start:stop] = flat[begin : begin + stop - start]
        begin += stop - start


def _looks(pictures: Sequence[Picture]) -> Iterator[list[Patches]]:
    """Thumbnails and cells in groups of no more than what is looked at in one go."""
    waiting: list[Patches] = []
    for picture in pictures:
        waiting += patch_picture(picture.rgb, picture.max_slices)
        while len(waiting) >= LOOK_PIECES:
            yield waiting[:LOOK_PIECES]
            waiting = waiting[LOOK_PIECES:]
    if waiting:
        yield waiting
