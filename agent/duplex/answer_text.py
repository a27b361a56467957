"""From an answer's tokens to what is shown of it, piece by piece; in pieces = in one go.

No letter is cut in two, and what may be the beginning of a stop string waits until it is sure that
it is none. What was never complete at the end is not shown.
"""

from collections import deque
from collections.abc import Callable, Sequence

from agent.duplex.tokens import SPECIAL_IDS, TextStream, Token
from agent.duplex.tool_calls import CallReader


class AnswerText:
    """One answer's text and the reasoning before it: `push` tokens, `take` what is settled.

    With `thinking`, all from a leading `<think>` to `</think>` is reasoning, shown without the
    blanks around it; an answer that begins otherwise has none. Special tokens are ignored. `stop`
    strings count in the text alone, which ends before the first of them; `calls` takes out of it
    what calls functions.

    `settled_words` says how many of the text's tokens, from the first on, may be said: with stop
    strings or calls those all of whose letters were shown, before the first call; else all.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        thinking: bool = False,
        stop: Sequence[str] = (),
        calls: CallReader | None = None,
    ) -> None:
        self._decode = decode
        self._letters = TextStream(decode)
        self._thoughts = _Trimmed()
        self._stops = StopStrings(stop)
        self._words = _Words() if stop or calls is not None else None
        self._calls = calls
        self._text = self._reasoning = ""
        self.settled_words = 0
        self._may_think = thinking
        self._is_thinking = self._is_after_thought = self._is_over = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met, or as many calls as there may be: the answer is over."""
        return self._stops.found or (self._calls is not None and self._calls.is_over)

    @property
    def is_calling(self) -> bool:
        """Whether a call is being written: nothing of it is ever said."""
        return self._calls is not None and self._calls.inside

    def open_with(self, text: str) -> None:
        """The answer begins with this, which the model does not write itself. Before all else."""
        self._show(text)

    def push(self, token: int) -> bool:
        """The next token → whether it is the text's: not reasoning, nor the blanks behind that."""
        if token == Token.THINK and self._may_think:
            self._is_thinking, self._may_think = True, False
            return False
        self._may_think = self._may_think and token in SPECIAL_IDS
        if self._is_thinking:
            self._think(token)
            return False
        return self._write(self._letters.push([token]))

    def take(self) -> tuple[str, str]:
        """Text and reasoning that were settled since the last time."""
        taken = self._text, self._reasoning
        self._text = self._reasoning = ""
        return taken

    def finish(self) -> None:
        """No token follows: what waited for more is settled. Idempotent."""
        if self._is_over:
            return
        self._is_over = True
        if not self._stops.found:
            self._show(self._stops.finish())
        if self._calls is not None:
            self._text += self._calls.finish()
        if not self._stops.found:
            self._settle_words()

    def _show(self, text: str) -> None:
        """What is no stop string is shown, unless it is of a call."""
        self._text += text if self._calls is None else self._calls.push(text)

    def _think(self, token: int) -> None:
        if token == Token.END_THINK:
            self._is_thinking, self._is_after_thought = False, True
            self._letters = TextStream(self._decode)
        else:
            self._reasoning += self._thoughts.push(self._letters.push([token]))

    def _write(self, letters: str) -> bool:
        text = letters
        if self._is_after_thought:
            text = letters.lstrip()
            self._is_after_thought = not text
        is_blank = bool(letters) and not text
        if not is_blank:
            self._show(self._stops.push(text))
            self._add_word(len(text))
        return not is_blank

    def _add_word(self, letters: int) -> None:
        if self._words is None:
            self.settled_words += 1
        else:
            self._words.add(letters)
            self._settle_words()

    def _settle_words(self) -> None:
        if self._words is None:
            return
        shown = self._words.letters - self._stops.held
        self.settled_words += self._words.settle(
            shown if self._calls is None else self._calls.letters
        )


class _Words:
    """Where each word ends that waits to be settled; a letter's tokens end where the letter does.

    No more wait than a stop string has letters, and those of one letter.
    """

    def __init__(self) -> None:
        self._ends: deque[int] = deque()
        self._unfinished = 0
        self.letters = 0

    def add(self, letters: int) -> None:
        """The next word, with which so many letters are complete."""
        self.letters += letters
        self._unfinished += 1
        if letters:
            self._ends += [self.letters] * self._unfinished
            self._unfinished = 0

    def settle(self, shown: int) -> int:
        """So many letters are shown → how many words more are settled."""
        count = sum(end <= shown for end in self._ends)
        for _ in range(count):
            self._ends.popleft()
        return count


class _Trimmed:
    """Text without the blanks around it."""

    def __init__(self) -> None:
        self._waiting = ""
        self._begun = False

    def push(self, text: str) -> str:
        """What of it is sure to be inside."""
        whole = self._waiting + text if self._begun else text.lstrip()
        shown = whole.rstrip()
        self._begun = self._begun or bool(shown)
        self._waiting = whole[len(shown) :]
        return shown


class StopStrings:
    """Finds the first of some strings in text that comes piece by piece.

    The first is the one that is complete first, and of those the longest.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._waiting = ""
        self.found = False
        self.held = 0
        """Of all that was pushed, the newest letters that were not returned."""

    def push(self, text: str) -> str:
        """The next text → what of it stands before any of the strings, for sure."""
        if self.found:
            self.held += len(text)
            return ""
        whole = self._waiting + text
        met = [(at + len(one), at) for one in self._strings if (at := whole.find(one)) >= 0]
        if met:
            self.found, self._waiting = True, ""
            shown = whole[: min(met)[1]]
            self.held = len(whole) - len(shown)
            return shown
        self.held = max((_overlap(whole, one) for one in self._strings), default=0)
        shown = whole[: len(whole) - self.held]
        self._waiting = whole[len(shown) :]
        return shown

    def finish(self) -> str:
        """What turned out to begin none."""
        rest, self._waiting = self._waiting, ""
        self.held = 0 if not self.found else self.held
        return rest


def _overlap(text: str, string: str) -> int:
    """How many letters at the end of `text` may begin `string`."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
