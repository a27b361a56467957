"""What a client puts into a duplex call beside its voice: it goes with the next unit."""

from collections.abc import Sequence

from agent.commands import AddAudio, AddPicture, AddText, AddToolResult, DeleteItem
from agent.duplex.conversation import MAX_PUT_IN_TOKENS, Conversation
from agent.duplex.lanes import Runner
from agent.duplex.typed_input import VECTOR_SAMPLES, TypedInput
from agent.duplex.unit_input import Sight
from agent.scheduler import Shown
from agent.types import MIC_RATE_HZ, VideoFrame

MAX_RECORDED_S = 30
"""Of recordings that wait for a unit: it would come too late with more."""


class CallInput:
    """Words, files and recordings for `talk`, and how much it sees of the camera."""

    def __init__(self, runner: Runner, talk: Conversation, max_slices: int) -> None:
        self._talk = talk
        self._typed = TypedInput(runner.model.vocabulary)
        # A thumbnail or cell with its marks.
        self.sight = Sight(self._typed, runner.model.config.resampler.queries + 2, max_slices)

    def put_in(self, command: AddText | AddPicture | AddAudio | AddToolResult | DeleteItem) -> None:
        """It waits for the next unit; RequestError, with nothing changed, if it cannot."""
        match command:
            case AddText():
                self._typed.add_text(command, self._text_room)
            case AddToolResult():
                self._typed.add_result(command, self._text_room)
            case AddAudio():
                self._typed.add_recording(command, self._most_samples)
            case AddPicture():
                self.sight.add(command, self._talk.unit_room_tokens)
            case DeleteItem(item_id=item_id):
                self._typed.forget(item_id)

    def put_in_written(self, text: str) -> None:
        """The same for functions of one answer, in which control tokens are meant."""
        self._typed.add_written(text, self._text_room)

    @property
    def _text_room(self) -> int:
        """Tokens of text that may wait beside the recordings."""
        heard = self._typed.sound_samples // VECTOR_SAMPLES
        return max(0, min(MAX_PUT_IN_TOKENS, self._talk.unit_room_tokens // 4 - heard))

    @property
    def _most_samples(self) -> int:
        """Recordings that may wait beside the text."""
        room = self._talk.unit_room_tokens // 4 - self._typed.text_tokens
        return min(MAX_RECORDED_S * MIC_RATE_HZ, max(0, room) * VECTOR_SAMPLES)

    def ease(self, shown: Shown) -> None:
        """From the next unit on so much is seen of the camera."""
        self.sight.shown = shown

    def seen(self, pictures: Sequence[VideoFrame]) -> tuple[VideoFrame, ...]:
        """The newest of a unit's pictures that it has room for."""
        return self.sight.seen(pictures, self._talk.unit_room_tokens)

    def hand_over(self, *, is_tried: bool) -> None:
        """All of it goes with the next unit; it comes back with one that is only tried."""
        if is_tried:
            self._typed.lend()
        for text in self._typed.take_texts():
            self._talk.put_in_written(text)
        for rgb in self._typed.take_pictures():
            self._talk.put_in_picture(rgb)
        for sound in self._typed.take_sounds():
            self._talk.put_in_sound(sound)

    def bring_back(self) -> None:
        """That unit was taken back."""
        self._typed.bring_back()

    def keep(self) -> None:
        """That unit stays."""
        self._typed.keep()
