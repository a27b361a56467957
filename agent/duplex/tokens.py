"""The vocabulary: the tokens that mean something to the code, and text to ids and back.

The tokenizer's files come with the checkpoint; every id named here is asserted against them.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from agent.errors import CheckpointError, RequestError

VOCABULARY_SIZE = 151_748


class Token(IntEnum):
    """Ids with a meaning to the code; `WRITTEN` says how each is written."""

    UNKNOWN = 128_244
    """Stands where a vector of a picture or of sound goes; an ordinary slot, flagged special."""
    END_OF_TEXT = 151_643
    IM_START = 151_644
    IM_END = 151_645
    TOOL_CALL = 151_657
    END_TOOL_CALL = 151_658
    TOOL_RESPONSE = 151_665
    END_TOOL_RESPONSE = 151_666
    THINK = 151_667
    END_THINK = 151_668
    IMAGE = 151_669
    END_IMAGE = 151_670
    SLICE = 151_679
    END_SLICE = 151_680
    IMAGE_ID = 151_681
    END_IMAGE_ID = 151_682
    UNIT = 151_683
    END_UNIT = 151_684
    AUDIO_START = 151_697
    AUDIO = 151_698
    AUDIO_END = 151_699
    TTS_BOS = 151_703
    TTS_EOS = 151_704
    LISTEN = 151_705
    SPEAK = 151_706
    TURN_BOS = 151_716
    TURN_EOS = 151_717
    CHUNK_EOS = 151_718
    CHUNK_BOS = 151_719
    CHUNK_TTS_BOS = 151_720
    CHUNK_TTS_EOS = 151_721
    TTS_PAD = 151_722


WRITTEN = {
    Token.UNKNOWN: "<unk>",
    Token.END_OF_TEXT: "<|endoftext|>",
    Token.IM_START: "<|im_start|>",
    Token.IM_END: "<|im_end|>",
    Token.TOOL_CALL: "<tool_call>",
    Token.END_TOOL_CALL: "</tool_call>",
    Token.TOOL_RESPONSE: "<tool_response>",
    Token.END_TOOL_RESPONSE: "</tool_response>",
    Token.THINK: "<think>",
    Token.END_THINK: "</think>",
    Token.IMAGE: "<image>",
    Token.END_IMAGE: "</image>",
    Token.SLICE: "<slice>",
    Token.END_SLICE: "</slice>",
    Token.IMAGE_ID: "<image_id>",
    Token.END_IMAGE_ID: "</image_id>",
    Token.UNIT: "<unit>",
    Token.END_UNIT: "</unit>",
    Token.AUDIO_START: "<|audio_start|>",
    Token.AUDIO: "<|audio|>",
    Token.AUDIO_END: "<|audio_end|>",
    Token.TTS_BOS: "<|tts_bos|>",
    Token.TTS_EOS: "<|tts_eos|>",
    Token.LISTEN: "<|listen|>",
    Token.SPEAK: "<|speak|>",
    Token.TURN_BOS: "<|turn_bos|>",
    Token.TURN_EOS: "<|turn_eos|>",
    Token.CHUNK_EOS: "<|chunk_eos|>",
    Token.CHUNK_BOS: "<|chunk_bos|>",
    Token.CHUNK_TTS_BOS: "<|chunk_tts_bos|>",
    Token.CHUNK_TTS_EOS: "<|chunk_tts_eos|>",
    Token.TTS_PAD: "<|tts_pad|>",
}

_NOT_SPECIAL = range(151_657, 151_669)
"""Added tokens that count as text: tool calls, fill-in-the-middle, think, and their like."""
SPECIAL_IDS = frozenset({Token.UNKNOWN, *range(151_643, VOCABULARY_SIZE)} - {*_NOT_SPECIAL})
"""Ids that vanish when ids become text. `<|turn_eos|>` is one, so it counts no characters."""


class TextCodec(Protocol):
    """Text to ids and back; the checkpoint's tokenizer, or a test's."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which the written forms of added tokens become these tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids none of which is special; broken UTF-8 becomes U+FFFD."""


class Vocabulary:
    """Text to ids and back, and the ids that the model must never say."""

    def __init__(
        self, codec: TextCodec, unspeakable: Iterable[int], written: Iterable[str] = ()
    ) -> None:
        self._codec = codec
        self._written = (*written, *WRITTEN.values())
        self.unspeakable = tuple(sorted(set(unspeakable)))
        """Ids that are banned while the model speaks: what cannot be read aloud."""

    def encode(self, text: str) -> list[int]:
        """Ids of our own text, in which added tokens are written out. RequestError: halves of
        letters, which a stranger's JSON may hold inside of it."""
        check_letters(text)
        return self._codec.encode(text)

    def encode_foreign(self, text: str) -> list[int]:
        """Ids of what a stranger wrote: none of it becomes a control token. RequestError."""
        return self.encode(self.defused(text))

    def defused(self, text: str) -> str:
        """`text` without anything that would be read as an added token; linear in its length."""
        letters: list[str] = []
        at = 0
        while found := self._added.search(text, at):
            letters += text[at : found.start()]
            at = self._closed_up(letters, text, found.end())
        return "".join(letters) + text[at:]

    def text(self, ids: Iterable[int]) -> str:
        """What a reader sees of `ids`: special ones are left out."""
        return self._codec.decode(without_specials(ids))

    def _closed_up(self, letters: list[str], text: str, at: int) -> int:
        """Take away what forms where `letters` and `text` from `at` on meet; where it goes on."""
        while True:
            left = "".join(letters[-self._reach :])
            seam = left + text[at : at + self._reach]
            found = self._added.search(seam)
            if found is None:
                return at
            # There was none in `left`, so this one ends behind it.
            letters[-self._reach :] = seam[: found.start()]
            at += found.end() - len(left)

    @cached_property
    def _reach(self) -> int:
        """How far before or behind a seam a token that lies across it can reach."""
        return max(map(len, self._written)) - 1

    @cached_property
    def _added(self) -> re.Pattern[str]:
        longest_first = sorted(set(self._written), key=len, reverse=True)
        return re.compile("|".join(re.escape(one) for one in longest_first))


def check_letters(text: str) -> None:
    """RequestError when `text` holds half of a surrogate pair: no tokenizer can read that."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds half of a letter, U+{ord(text[error.start]):04X} without its other "
            f"half, at character {error.start}",
            code="invalid_text",
        ) from error


def without_specials(ids: Iterable[int]) -> list[int]:
    """The ids that are text."""
    return [one for one in ids if one not in SPECIAL_IDS]


class TextStream:
    """Ids of one turn to text, piece by piece, no letter cut in two: `push`, then `finish`.

    A letter may need several tokens, and a second may end between them; what is incomplete waits
    for the next piece. In pieces = in one go.
    """

    _LONGEST = 4
    """A letter has at most four bytes; more than that many tokens are no letter to wait for."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._waiting: list[int] = []

    def push(self, ids: Iterable[int]) -> str:
        """The next ids, special ones ignored → the text that is complete with them."""
        self._waiting += without_specials(ids)
        keep = self._incomplete()
        done = self._waiting[: len(self._waiting) - keep]
        self._waiting = self._waiting[len(done) :]
        return self._decode(done) if done else ""

    def finish(self) -> str:
        """What never became complete, as U+FFFD."""
        rest, self._waiting = self._waiting, []
        return self._decode(rest) if rest else ""

    def copy(self) -> "TextStream":
        other = TextStream(self._decode)
        other._waiting = list(self._waiting)
        return other

    def _incomplete(self) -> int:
        """How many ids at the end are part of a letter that is not whole yet."""
        for keep in range(min(self._LONGEST, len(self._waiting) + 1)):
            done = self._waiting[: len(self._waiting) - keep]
            if not done or not self._decode(done[-self._LONGEST * 2 :]).endswith("\ufffd"):
                return keep
        return 0


# ---- from the checkpoint's folder ---------------------------------------------------------------


def load_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary by the tokenizer files in `folder`; CheckpointError when they do not fit."""
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        unspeakable = [int(one) for one in settings["bad_token_ids"]]
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); the tokenizer belongs to the checkpoint"
        ) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: names no bad_token_ids; it is not the tokenizer of MiniCPM-o 4.5"
        ) from error
    tokenizer = _load_tokenizer(folder)
    added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    _check(folder, len(tokenizer), added, unspeakable)
    return Vocabulary(_Tokenizer(tokenizer), unspeakable, added.values())


def _load_tokenizer(folder: Path) -> Any:
    from transformers import Qwen2Tokenizer  # seconds to import, and needed by nobody else

    try:
        # By its class, not by its name: the name in the file is of remote code, which is not run.
        return Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be loaded ({error})") from error


def _check(folder: Path, size: int, added: dict[int, str], unspeakable: Collection[int]) -> None:
    if size != VOCABULARY_SIZE:
        raise CheckpointError(f"{folder}: {size} tokens, expected {VOCABULARY_SIZE}")
    for token, written in WRITTEN.items():
        if added.get(token) != written:
            raise CheckpointError(
                f"{folder}: token {token.value} is {added.get(token)!r}, expected {written!r}"
            )
    beyond = [one for one in unspeakable if not 0 <= one < size or one in SPECIAL_IDS]
    if beyond:
        raise CheckpointError(f"{folder}: bad_token_ids names {beyond[0]}, which is no text")


class _Tokenizer:
    """The checkpoint's tokenizer as a `TextCodec`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text
