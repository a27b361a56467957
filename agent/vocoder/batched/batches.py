"""Pushes of many streams, begun together: rounds of the machine, and who has what of them.

A push is as many chunks as its tokens complete. The first chunks of all pushes are the first round,
the second ones the next. The rounds of a batch are started without waiting and read at its end; a
chunk that went wrong is made again then, from the state before it, by the stream itself, which goes
on so until its turn is over.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from agent.errors import VocoderError
from agent.interfaces import VocoderPush
from agent.types import FloatArray
from agent.vocoder.batched.places import Finite, Full, Numbers
from agent.vocoder.batched.turn import Chunk, Planned, Rooms, Rules, TurnState, VoicePlace, planned
from agent.vocoder.one_by_one import Answer, answer_to

_MOST_ROUNDS = 4
"""Under way at once; each has room of its own for what comes back."""


class Turn(Protocol):
    """A stream as a batch sees it."""

    @property
    def memory(self) -> "tuple[VoicePlace, TurnState] | None":
        """Where its voice is and what it remembers; none when it goes on by itself."""

    def accept(self, tokens: Sequence[int], *, last: bool) -> list[Chunk]:
        """Take these tokens: the chunks that are due. `VocoderError`."""

    def advance(self, state: TurnState) -> None:
        """A chunk was begun, after which it remembers this."""

    def heard(self, sound: FloatArray) -> FloatArray:
        """What of the next sound is to be heard."""

    def fall_back(self, state: TurnState, chunks: Sequence[Chunk]) -> tuple[FloatArray, str]:
        """Go on by itself, from `state` with these chunks: their sound as far as it comes, and
        why no more came. What fails the first is raised."""

    def say(self, tokens: Sequence[int], *, last: bool) -> FloatArray:
        """What it says of these tokens by itself. `VocoderError`."""

    def lose(self, failure: str) -> None:
        """The turn has failed."""


class RoundLike(Protocol):
    """What `agent.vocoder.batched.machine.Round` is."""

    @property
    def done(self) -> bool: ...

    def finish(self) -> tuple[FloatArray, Finite]:
        """What lasts until another round is begun."""
        ...


class MachineLike(Protocol):
    """What `agent.vocoder.batched.machine.Machine` is."""

    rules: Rules
    rooms: Rooms

    @property
    def most(self) -> int: ...

    def begin(self, plans: Numbers) -> RoundLike: ...

    def working(self) -> AbstractContextManager[None]: ...


@dataclass(slots=True)
class _Job:
    """A push of a batch, and what has come of it."""

    push: VocoderPush
    turn: Turn
    chunks: list[Chunk] = field(default_factory=list)
    begun: int = 0
    """How many chunks are in rounds."""
    made: list[FloatArray] = field(default_factory=list)
    failure: str = ""
    error: VocoderError | None = None
    is_alone: bool = False

    @property
    def waits(self) -> bool:
        """Whether chunks are still to be begun."""
        return self.error is None and not self.is_alone and self.begun < len(self.chunks)

    def accept(self) -> None:
        """Take the push's tokens."""
        self.is_alone = self.turn.memory is None
        if self.is_alone:
            return
        try:
            self.chunks = self.turn.accept(self.push.tokens, last=self.push.last)
        except VocoderError as error:
            self.error = error

    def say(self) -> None:
        """What a turn that goes on by itself says of it."""
        tokens, last = self.push.tokens, self.push.last
        self._take(answer_to(lambda: self.turn.say(tokens, last=last)))

    def fall_back(self, state: TurnState, first: int) -> None:
        """Let the turn go on by itself from its chunk number `first`."""
        self.is_alone = True

        def ask() -> FloatArray:
            sound, self.failure = self.turn.fall_back(state, self.chunks[first:])
            return sound

        self._take(answer_to(ask))
        if self.failure:
            self.turn.lose(self.failure)

    def _take(self, answer: Answer) -> None:
        if not isinstance(answer, VocoderError):
            self.made.append(answer)
            return
        self.failure = str(answer)
        if not self.made:
            self.error = answer

    def answer(self) -> Answer:
        """What whoever pushed is told: that it failed too, of a turn that was to end."""
        if self.error is None and self.failure and self.push.last:
            self.error = VocoderError(self.failure)
        if self.error is not None:
            return self.error
        if len(self.made) == 1:
            return self.made[0]
        return np.concatenate([np.zeros(0, np.float32), *self.made])


class _Entry(NamedTuple):
    """A chunk in a round, and the state before it."""

    job: _Job
    number: int
    before: TurnState
    samples: int


class Batch:
    """A `VocoderBatch` of the machine's."""

    def __init__(
        self, machine: MachineLike, pushes: Sequence[VocoderPush], turns: Sequence[Turn]
    ) -> None:
        """Begin it; whatever stands in the way of one push is its own answer.

        Turns that go on by themselves do so here, behind the others.
        """
        self._machine = machine
        self._rounds: deque[tuple[RoundLike, list[_Entry]]] = deque()
        self._answers: list[Answer] = []
        self._jobs = [_Job(push, turn) for push, turn in zip(pushes, turns, strict=True)]
        for job in self._jobs:
            job.accept()
        alone = [job for job in self._jobs if job.is_alone]
        while waiting := [job for job in self._jobs if job.waits]:
            for at in range(0, len(waiting), machine.most):
                self._begin_round(waiting[at : at + machine.most])
        if alone:
            with machine.working():
                for job in alone:
                    job.say()

    @property
    def done(self) -> bool:
        """See `VocoderBatch`."""
        return all(one.done for one, _ in self._rounds)

    def take(self) -> Sequence[Answer]:
        """See `VocoderBatch`."""
        self.settle()
        return self._answers

    def settle(self) -> None:
        """Wait until all is done, and let go of the turns and what they left. Idempotent."""
        self._finish_rounds(0)
        self._answers += [job.answer() for job in self._jobs]
        self._jobs = []

    # ---- rounds ---------------------------------------------------------------------------------

    def _begin_round(self, jobs: Sequence[_Job]) -> None:
        self._finish_rounds(_MOST_ROUNDS - 1)
        plans = np.zeros((len(jobs), self._machine.rules.layout.columns), np.int64)
        entries: list[_Entry] = []
        for job in jobs:
            made = self._planned(job, plans[len(entries)])
            if made is None:
                continue
            chunk, before = made
            entries.append(_Entry(job, job.begun, before, chunk.samples))
            job.turn.advance(chunk.after)
            job.begun += 1
        if entries:
            self._rounds.append((self._machine.begin(plans[: len(entries)]), entries))

    def _planned(self, job: _Job, row: Numbers) -> tuple[Planned, TurnState] | None:
        """The job's next chunk, in a row of the plans, and the state before it; none where the
        turn goes on by itself."""
        for is_settled in (False, True):
            memory = job.turn.memory
            if memory is None or not job.waits:
                break
            voice, state = memory
            rules, rooms = self._machine.rules, self._machine.rooms
            try:
                return planned(state, voice, job.chunks[job.begun], rules, rooms, row), state
            except Full:
                pass
            if is_settled:
                with self._machine.working():
                    job.fall_back(state, job.begun)
            else:
                # What is under way holds places that it leaves behind.
                self._finish_rounds(0)
        return None

    def _finish_rounds(self, left: int) -> None:
        while len(self._rounds) > left:
            begun, entries = self._rounds.popleft()
            sound, finite = begun.finish()
            for row, entry in enumerate(entries):
                job, piece = entry.job, sound[row, : entry.samples]
                if job.is_alone:
                    continue
                if finite[row] and np.isfinite(piece).all():
                    # A copy: the machine's next round may write where this one's sound is.
                    job.made.append(job.turn.heard(piece).copy())
                else:
                    with self._machine.working():
                        job.fall_back(entry.before, entry.number)
