"""What a client types and sends into a call, until the model reads it."""

from dataclasses import dataclass
from itertools import groupby

from agent.commands import AddAudio, AddPicture, AddText, AddToolResult
from agent.duplex.content import check_sound
from agent.duplex.pictures import check_picture, decode_picture
from agent.duplex.tokens import Vocabulary, check_letters
from agent.duplex.tool_prompt import written_result
from agent.errors import RequestError, UnsupportedError
from agent.types import MIC_RATE_HZ, ByteArray, FloatArray

VECTOR_SAMPLES = MIC_RATE_HZ // 10
"""Sound of a vector, at 16 kHz."""
_WRITTEN = "\n"


@dataclass(frozen=True, slots=True)
class _Text:
    """Words that wait; nothing that a stranger wrote in them is a control token."""

    written: str
    is_result: bool = False


class TypedInput:
    """Words, pictures and recordings that wait, by the item that brought them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._texts: dict[str, _Text] = {}
        self._pictures: dict[str, list[ByteArray]] = {}
        self._sounds: dict[str, list[FloatArray]] = {}
        self._lent: TypedInput | None = None

    @property
    def waits(self) -> bool:
        """Whether there is anything."""
        return bool(self._texts or self._pictures or self._sounds)

    @property
    def pictures(self) -> list[ByteArray]:
        """Those that wait [H, W, 3], in order, or may have to again."""
        lent = [] if self._lent is None else self._lent.pictures
        return [*lent, *(rgb for shown in self._pictures.values() for rgb in shown)]

    @property
    def sound_samples(self) -> int:
        """How much sound waits, or may have to again, at 16 kHz."""
        lent = 0 if self._lent is None else self._lent.sound_samples
        return lent + sum(len(one) for heard in self._sounds.values() for one in heard)

    @property
    def text_tokens(self) -> int:
        """Positions that the words take which wait, each with one more to part it from others."""
        return self._tokens([*self._texts.values()]) + len(self._texts)

    def add_text(self, added: AddText, most_tokens: int) -> None:
        """More words; RequestError when that would make more than so many tokens."""
        if added.role == "assistant":
            raise UnsupportedError(
                "the model cannot be told what it said; send it as a message of the user",
                param="item.role",
            )
        check_letters(added.text)
        self._add(added.item_id, _Text(self._vocabulary.defused(added.text)), most_tokens)

    def add_result(self, added: AddToolResult, most_tokens: int) -> None:
        """What a function returned, as the model reads it; RequestError as for words."""
        check_letters(added.output)
        written = written_result(self._vocabulary, added.output)
        self._add(_result_of(added.call_id), _Text(written, is_result=True), most_tokens)

    def add_written(self, written: str, most_tokens: int) -> None:
        """Functions of one answer, in which control tokens are meant, in the place of any that came
        so before; RequestError as for words."""
        try:
            self._add(_WRITTEN, _Text(written), most_tokens)
        except RequestError as error:
            raise RequestError(
                f"the functions of one answer take more than {most_tokens} tokens with what else "
                "waits; offer fewer, or give them to the session",
                param="response.tools",
            ) from error

    def _add(self, key: str, text: _Text, most_tokens: int) -> None:
        lent = {} if self._lent is None else self._lent._texts
        waiting = [*{**lent, **self._texts}.values(), text]
        if self._tokens(waiting) > most_tokens:
            raise RequestError(
                f"more than {most_tokens} tokens of text wait for the model; send less",
                param="item.content",
            )
        self._texts[key] = text

    def expect_room(self, most: int, later: str) -> None:
        """RequestError when `most` pictures wait; `later` says when to send more."""
        if len(self.pictures) >= most:
            raise RequestError(
                f"{most} pictures wait to be seen; send more {later}", param="item.content"
            )

    def add_picture(self, item_id: str, rgb: ByteArray) -> None:
        """One more picture, which `opened` made."""
        self._pictures.setdefault(item_id, []).append(rgb)

    def add_recording(self, added: AddAudio, most_samples: int) -> None:
        """A recording; RequestError when it is none, or more than so much sound would wait."""
        check_sound(added.samples)
        if self.sound_samples + len(added.samples) > most_samples:
            raise RequestError(
                f"more than {most_samples / MIC_RATE_HZ:.0f} s of recordings wait to be heard; "
                "send shorter ones, or fewer at a time",
                param="item.content",
            )
        self._sounds.setdefault(added.item_id, []).append(added.samples.clip(-1, 1))

    def forget(self, item_id: str) -> None:
        """The item was deleted."""
        self._texts.pop(item_id, None)
        self._pictures.pop(item_id, None)
        self._sounds.pop(item_id, None)
        if self._lent is not None:
            self._lent.forget(item_id)

    def take_texts(self) -> list[str]:
        """The words, which wait no more; results that follow each other are one text."""
        texts, self._texts = self._texts, {}
        parts = groupby(texts.values(), key=lambda one: one.is_result)
        written = [(is_result, [one.written for one in part]) for is_result, part in parts]
        return [
            one for is_result, part in written for one in (["\n".join(part)] if is_result else part)
        ]

    def take_pictures(self) -> list[ByteArray]:
        """The pictures, which wait no more."""
        pictures, self._pictures = self._pictures, {}
        return [rgb for shown in pictures.values() for rgb in shown]

    def take_sounds(self) -> list[FloatArray]:
        """The recordings [T], which wait no more."""
        sounds, self._sounds = self._sounds, {}
        return [one for heard in sounds.values() for one in heard]

    # ---- for a unit that is only tried ----------------------------------------------------------

    def lend(self) -> None:
        """What waits now goes with a unit that may be taken back."""
        self._lent = TypedInput(self._vocabulary)
        self._lent._texts = dict(self._texts)
        self._lent._pictures = {item_id: [*shown] for item_id, shown in self._pictures.items()}
        self._lent._sounds = {item_id: [*heard] for item_id, heard in self._sounds.items()}

    def bring_back(self) -> None:
        """That unit was taken back: what it was lent waits again, before what came since."""
        lent, self._lent = self._lent, None
        if lent is None:
            return
        self._texts = {**lent._texts, **self._texts}
        for item_id, shown in self._pictures.items():
            lent._pictures.setdefault(item_id, []).extend(shown)
        for item_id, heard in self._sounds.items():
            lent._sounds.setdefault(item_id, []).extend(heard)
        self._pictures, self._sounds = lent._pictures, lent._sounds

    def keep(self) -> None:
        """That unit stays: what it was lent is gone."""
        self._lent = None

    def _tokens(self, texts: list[_Text]) -> int:
        """An empty one counts too, so that their number is bounded."""
        return sum(max(1, len(self._vocabulary.encode(text.written))) for text in texts)


def _result_of(call_id: str) -> str:
    """No item's id: those have no line breaks."""
    return f"\n{call_id}"


def opened(added: AddPicture, max_slices: int) -> ByteArray:
    """The picture [H, W, 3] in a file; RequestError when it is none or of an impossible shape."""
    rgb = decode_picture(added.file)
    height, width = rgb.shape[:2]
    check_picture(width, height, max_slices)
    return rgb
