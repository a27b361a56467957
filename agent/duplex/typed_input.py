"""What a client types and sends into a call, until the model reads it."""

from agent.duplex.pictures import check_picture, decode_picture
from agent.duplex.tokens import Vocabulary
from agent.errors import RequestError, UnsupportedError
from agent.types import AddPicture, AddText, ByteArray


class TypedInput:
    """Words and pictures that wait, by the item that brought them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._texts: dict[str, str] = {}
        self._pictures: dict[str, list[ByteArray]] = {}
        self._lent: TypedInput | None = None

    @property
    def pictures(self) -> list[ByteArray]:
        """Those that wait [H, W, 3], in order, or may have to again."""
        lent = [] if self._lent is None else self._lent.pictures
        return [*lent, *(rgb for shown in self._pictures.values() for rgb in shown)]

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
        lent = {} if self._lent is None else self._lent._texts
        waiting = [*{**lent, **self._texts}.values(), added.text]
        if self._tokens(waiting) > most_tokens:
            raise RequestError(
                f"more than {most_tokens} tokens of text wait for the model; send less",
                param="item.content",
            )
        self._texts[added.item_id] = added.text

    def expect_room(self, most: int, later: str) -> None:
        """RequestError when `most` pictures wait; `later` says when to send more."""
        if len(self.pictures) >= most:
            raise RequestError(
                f"{most} pictures wait to be seen; send more {later}", param="item.content"
            )

    def add_picture(self, item_id: str, rgb: ByteArray) -> None:
        """One more picture, which `opened` made."""
        self._pictures.setdefault(item_id, []).append(rgb)

    def forget(self, item_id: str) -> None:
        """The item was deleted."""
        self._texts.pop(item_id, None)
        self._pictures.pop(item_id, None)
        if self._lent is not None:
            self._lent.forget(item_id)

    def take_texts(self) -> list[str]:
        """The words, which wait no more."""
        texts, self._texts = self._texts, {}
        return [*texts.values()]

    def take_pictures(self) -> list[ByteArray]:
        """The pictures, which wait no more."""
        pictures, self._pictures = self._pictures, {}
        return [rgb for shown in pictures.values() for rgb in shown]

    # ---- for a unit that is only tried ----------------------------------------------------------

    def lend(self) -> None:
        """What waits now goes with a unit that may be taken back."""
        self._lent = TypedInput(self._vocabulary)
        self._lent._texts = dict(self._texts)
        self._lent._pictures = {item_id: [*shown] for item_id, shown in self._pictures.items()}

    def bring_back(self) -> None:
        """That unit was taken back: what it was lent waits again, before what came since."""
        lent, self._lent = self._lent, None
        if lent is None:
            return
        self._texts = {**lent._texts, **self._texts}
        for item_id, shown in self._pictures.items():
            lent._pictures.setdefault(item_id, []).extend(shown)
        self._pictures = lent._pictures

    def keep(self) -> None:
        """That unit stays: what it was lent is gone."""
        self._lent = None

    def _tokens(self, texts: list[str]) -> int:
        """An empty one counts too, so that their number is bounded."""
        return sum(max(1, len(self._vocabulary.encode_foreign(text))) for text in texts)


def opened(added: AddPicture, max_slices: int) -> ByteArray:
    """The picture [H, W, 3] in a file; RequestError when it is none or of an impossible shape."""
    rgb = decode_picture(added.file)
    height, width = rgb.shape[:2]
    check_picture(width, height, max_slices)
    return rgb
