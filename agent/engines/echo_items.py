"""What a client puts into a call with the `echo` engine beside its voice, until it is answered."""

import io
import struct
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, UnidentifiedImageError

from agent.commands import AddAudio, AddPicture, AddText, AddToolResult
from agent.errors import RequestError
from agent.types import MIC_RATE_HZ, FloatArray, Usage

MAX_ITEMS = 8
"""The newest are answered."""
MAX_ECHO_SAMPLES = 15 * MIC_RATE_HZ
"""No answer is longer than 15 s."""
_MAX_SAID_CHARS = 1000
_MOST_CALLS = 64
_TOKEN_SAMPLES = MIC_RATE_HZ // 10
_SPOKEN_TOKEN_SAMPLES = 1200
_PICTURE_KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_NO_PICTURE = (
    *(UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning),
    *(OSError, ValueError, SyntaxError, TypeError, LookupError, struct.error, zlib.error),
)
"""What the decoders raise on data that is none, or was cut or altered."""


@dataclass(frozen=True, slots=True)
class Item:
    """One part of what was put in, and how it is answered: in words, and by which sound.

    `text` is what the user typed: it may call a function.
    """

    key: str
    caption: str
    text: str = ""
    sound: FloatArray | None = None  # [T] at 16 kHz
    is_result: bool = False


class Inbox:
    """Items that wait for an answer, in order."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque(maxlen=MAX_ITEMS)
        self._called: OrderedDict[str, str] = OrderedDict()

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def add(self, added: AddText | AddPicture | AddAudio | AddToolResult) -> Usage:
        """One more → what it takes to read it; RequestError when nothing can be made of it."""
        match added:
            case AddText(role="user"):
                self._items.append(
                    Item(added.item_id, f"You wrote: {_short(added.text)}", added.text)
                )
                return Usage(text_in=word_count(added.text))
            case AddText():
                # What the agent is told, or is to have said, is nobody's question.
                return Usage(text_in=word_count(added.text))
            case AddPicture():
                width, height = picture_size(added.file)
                caption = f"You sent a picture of {width}×{height} pixels."
                self._items.append(Item(added.item_id, caption))
                return Usage(pictures_in=1)
            case AddAudio():
                return self._add_recording(added)
            case AddToolResult():
                name = self._called.pop(added.call_id, "The function")
                caption = f"{name} returned: {_short(added.output)}"
                self._items.append(Item(added.call_id, caption, is_result=True))
                return Usage(text_in=word_count(added.output))

    def _add_recording(self, added: AddAudio) -> Usage:
        if not added.samples.size:
            raise RequestError("the recording is empty", param="item.content")
        sound = np.nan_to_num(added.samples, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)
        seconds = added.samples.size / MIC_RATE_HZ
        caption = f"You sent a recording of {seconds:.1f} s."
        if sound.size > MAX_ECHO_SAMPLES:
            caption += " Here are the last 15."
        self._items.append(Item(added.item_id, caption, sound=sound[-MAX_ECHO_SAMPLES:]))
        return Usage(audio_in=added.samples.size // _TOKEN_SAMPLES)

    def forget(self, key: str) -> None:
        """The item was deleted."""
        self._items = deque((one for one in self._items if one.key != key), maxlen=MAX_ITEMS)

    def called(self, call_id: str, name: str) -> None:
        """A function was called: its result will name no more than the call."""
        self._called[call_id] = name
        if len(self._called) > _MOST_CALLS:
            self._called.popitem(last=False)

    def take(self) -> list[Item]:
        """What waits, which waits no more."""
        items = list(self._items)
        self._items.clear()
        return items

    def bring_back(self, items: Sequence[Item]) -> None:
        """The answer to these was taken back: they wait again, before what came since."""
        self._items = deque((*items, *self._items), maxlen=MAX_ITEMS)


@dataclass(slots=True)
class Meter:
    """Counts tokens by a rule of its own, for there is no model that has any.

    A word is a token, so is a picture; so are 100 ms of sound on the way in and 50 ms on the way
    out, as OpenAI counts them. A call of a function costs its name and the words of its arguments.
    """

    heard_from: int = 0
    """Sound of the microphone before this sample is counted."""
    pictures: int = 0
    put_in: Usage = field(default_factory=Usage)

    def add(self, one: Usage) -> None:
        """Something was put in."""
        before = self.put_in
        self.put_in = replace(
            before,
            text_in=before.text_in + one.text_in,
            audio_in=before.audio_in + one.audio_in,
            pictures_in=before.pictures_in + one.pictures_in,
        )

    def now(self, heard_until: int, words: int, samples: int) -> Usage:
        """What a turn has taken that has said so many words and samples at 24 kHz."""
        heard = max(0, heard_until - self.heard_from) // _TOKEN_SAMPLES
        return replace(
            self.put_in,
            audio_in=self.put_in.audio_in + heard,
            pictures_in=self.put_in.pictures_in + max(0, self.pictures),
            text_out=words,
            audio_out=samples // _SPOKEN_TOKEN_SAMPLES,
        )

    def take(self, heard_until: int, words: int, samples: int) -> Usage:
        """The same of a turn that is over."""
        usage = self.now(heard_until, words, samples)
        self.heard_from, self.pictures, self.put_in = heard_until, 0, Usage()
        return usage


def word_count(text: str) -> int:
    return len(text.split())


def picture_size(file: bytes) -> tuple[int, int]:
    """Width and height of a picture, which is not unpacked; RequestError when it is none."""
    try:
        with Image.open(io.BytesIO(file), formats=_PICTURE_KINDS) as picture:
            return picture.size
    except _NO_PICTURE as error:
        raise RequestError(
            f"the picture is none of {', '.join(_PICTURE_KINDS)}, or damaged", param="item.content"
        ) from error


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SAID_CHARS else f"{text[:_MAX_SAID_CHARS]}…"
