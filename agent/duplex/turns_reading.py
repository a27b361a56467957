"""How a half-duplex call's user's turn is read: what was typed and sent, what was said and seen."""

import logging
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import numpy as np

from agent.chat_types import ChatPicture
from agent.commands import AddAudio, AddPicture, AddText, AddToolResult, DeleteItem
from agent.duplex.half_duplex import HalfDuplexConversation
from agent.duplex.lanes import Runner
from agent.duplex.turns_hearing import MAX_PICTURES, MAX_UTTERANCE_S
from agent.duplex.typed_input import VECTOR_SAMPLES, TypedInput, opened
from agent.duplex.unit_input import PictureRoom, is_seen
from agent.duplex.work import Work
from agent.types import MIC_RATE_HZ, ByteArray, FloatArray

log = logging.getLogger(__name__)

_SHORTEST_SAMPLES = 2 * VECTOR_SAMPLES  # shorter sound makes no vector, or nearly none

Steps: TypeAlias = Generator[Work, None, Any]


class TurnReader:
    """Reads into a conversation what joins the user's turn, as far as there is room."""

    def __init__(self, runner: Runner, max_slices: int) -> None:
        self._runner = runner
        self._typed = TypedInput(runner.model.vocabulary)
        self.max_slices = max_slices

    @property
    def waits(self) -> bool:
        """Whether something that was typed or sent is yet to be read."""
        return self._typed.waits

    @property
    def most_tokens(self) -> int:
        """A quarter of what a slot holds: so much a turn takes beside what is said in it."""
        return self._runner.slots.llm.positions // 4

    @property
    def _piece_tokens(self) -> int:
        """Positions of a thumbnail or cell with its marks."""
        return self._runner.model.config.resampler.queries + 2

    def put_in(self, command: AddText | AddPicture | AddAudio | AddToolResult | DeleteItem) -> None:
        """It waits for the user's next turn; RequestError, with nothing changed, if it cannot."""
        match command:
            case AddText():
                self._typed.add_text(command, self.most_tokens // 2)
            case AddToolResult():
                self._typed.add_result(command, self.most_tokens // 2)
            case AddAudio():
                most = min(MAX_UTTERANCE_S * MIC_RATE_HZ, self.most_tokens * VECTOR_SAMPLES)
                self._typed.add_recording(command, most)
            case AddPicture():
                self._typed.expect_room(MAX_PICTURES, "with the next turn")
                self._typed.add_picture(command.item_id, opened(command, self.max_slices))
            case DeleteItem(item_id=item_id):
                self._typed.forget(item_id)

    def hear(
        self, talk: HalfDuplexConversation, sound: FloatArray, cameras: Sequence[ByteArray]
    ) -> Generator[Work, None, bool]:
        """What was typed, and behind it what was said and seen → whether anything was."""
        yield from self._read_typed(talk)
        seen = [rgb for rgb in cameras if is_seen(rgb, self.max_slices)]
        return (yield from self._read(talk, sound, self._typed.take_pictures() + seen))

    def read_rest(self, talk: HalfDuplexConversation) -> Steps:
        """What was typed and sent, before an answer."""
        yield from self._read_typed(talk)
        if self._typed.pictures:
            yield from self._read(talk, np.zeros(0, np.float32), self._typed.take_pictures())

    def _read_typed(self, talk: HalfDuplexConversation) -> Steps:
        if self._typed.text_tokens > talk.turn_room_tokens:
            talk.abandon_turn()
        for text in self._typed.take_texts():
            yield from talk.read_written(text)
        for sound in self._typed.take_sounds():
            yield from self._read(talk, sound, [])

    def _read(
        self, talk: HalfDuplexConversation, sound: FloatArray, pictures: list[ByteArray]
    ) -> Generator[Work, None, bool]:
        """Sound and pictures join the user's turn, as far as there is room → whether any did.

        A turn that leaves none begins again with them: only its newest part is heard. Of sound
        that is too long the end, and of too many pictures the newest ones.
        """
        wanted = len(sound) // VECTOR_SAMPLES + self._piece_tokens
        if wanted > talk.turn_room_tokens:
            log.warning("the user's turn is longer than the context: its beginning is forgotten")
            talk.abandon_turn()
        room = talk.turn_room_tokens
        sound = sound[-max(1, room * 3 // 4) * VECTOR_SAMPLES :]
        fitting = self._fitting(pictures, room - len(sound) // VECTOR_SAMPLES - self._piece_tokens)
        if len(sound) >= _SHORTEST_SAMPLES:
            yield from talk.hear_steps(sound, fitting)
        elif fitting:
            yield from talk.read_steps([*map(ChatPicture, fitting)])
        return bool(fitting) or len(sound) >= _SHORTEST_SAMPLES

    def _fitting(self, pictures: Sequence[ByteArray], room: int) -> list[ByteArray]:
        pieces = room // self._piece_tokens
        newest = PictureRoom(pieces, MAX_PICTURES, self.max_slices).newest(pictures)
        return [pictures[place] for place in newest]
