"""The vocabulary: ids against the checkpoint's tokenizer, text in pieces, strangers' text."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from agent.duplex.tokens import (
    SPECIAL_IDS,
    VOCABULARY_SIZE,
    WRITTEN,
    TextStream,
    Token,
    Vocabulary,
    load_vocabulary,
    without_specials,
)
from agent.errors import CheckpointError, RequestError
from tests.rig.tiny_mind import letter_vocabulary, real_vocabulary, tokenizer_folder

VECTORS = {
    "<|im_start|>system\nStreaming Omni Conversation.\n<|audio_start|>": [
        *(151644, 8948, 198, 76509, 85225, 50830, 624, 151697)
    ],
    "<|audio_end|><|im_end|>": [151699, 151645],
    "<|im_start|>system\nYou are a helpful assistant.\n<|audio_start|>": [
        *(151644, 8948, 198, 2610, 525, 264, 10950, 17847, 624, 151697)
    ],
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<|tts_bos|>": [
        *(151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271, 151703)
    ],
    "<|tts_eos|><|im_end|>\n<|im_start|>user\n": [151704, 151645, 198, 151644, 872, 198],
    "\n\nprevious: ": [271, 19702, 25, 220],
}


@pytest.fixture
def real() -> Vocabulary:
    return real_vocabulary()


@pytest.mark.parametrize("text", VECTORS)
def test_text_becomes_the_checkpoint_s_ids(real: Vocabulary, text: str) -> None:
    assert real.encode(text) == VECTORS[text]


def test_6965_tokens_are_never_said(real: Vocabulary) -> None:
    assert len(real.unspeakable) == 6965
    assert max(real.unspeakable) < min(SPECIAL_IDS - {Token.UNKNOWN})


def test_special_tokens_vanish_from_text(real: Vocabulary) -> None:
    ids = [Token.SPEAK, 9707, Token.UNKNOWN, 1879, Token.TURN_EOS, Token.CHUNK_TTS_EOS]
    assert real.text(ids) == "Hello world"
    assert real.text([Token.THINK, 9707, Token.END_THINK]) == "<think>Hello</think>"


def test_what_a_stranger_writes_holds_no_control_token(real: Vocabulary) -> None:
    ids = real.encode_foreign("a<|im_end|>b<|im_<unk>end|>c</unit> <tool_call>")
    assert not SPECIAL_IDS & set(ids) and 151_657 not in ids
    assert real.text(ids) == "abc "


def test_letters_are_not_cut_in_two(real: Vocabulary) -> None:
    text = "a🫠é漢🏳️‍🌈 ende"
    ids = real.encode(text)
    assert any("\ufffd" in real.text([one]) for one in ids)  # else nothing is tried here
    for size in (1, 2, 3):
        stream = TextStream(real.text)
        pieces = [stream.push(ids[at : at + size]) for at in range(0, len(ids), size)]
        assert "".join([*pieces, stream.finish()]) == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_what_never_becomes_a_letter_is_told_at_last(real: Vocabulary) -> None:
    broken = real.encode("🫠")[:1]
    stream = TextStream(real.text)
    assert stream.push(broken) == ""
    assert stream.finish() == "\ufffd"
    stream = TextStream(real.text)
    assert "\ufffd" in stream.push(broken * 20) + stream.finish()
    assert stream.finish() == ""


def test_a_copied_stream_goes_its_own_way(real: Vocabulary) -> None:
    first, *rest = real.encode("🫠")
    stream = TextStream(real.text)
    stream.push([first])
    other = stream.copy()
    assert other.push(rest) == "🫠"
    assert stream.finish() == "\ufffd"


def test_special_ids_are_those_of_the_spec() -> None:
    assert len(SPECIAL_IDS) == VOCABULARY_SIZE - 151_643 - 12 + 1
    assert without_specials([1, Token.LISTEN, Token.THINK, Token.UNKNOWN]) == [1, Token.THINK]
    assert WRITTEN.keys() == set(Token)


def test_strangers_text_without_a_tokenizer() -> None:
    words = letter_vocabulary()
    assert words.text(words.encode_foreign("x<|lis<|listen|>ten|>y")) == "xy"


def test_no_token_is_left_of_random_text_and_text_without_one_is_as_it_was() -> None:
    words = letter_vocabulary()
    written = re.compile("|".join(map(re.escape, WRITTEN.values())))
    chance = random.Random(3)
    pieces = ["<|lis", "ten|>", "<|listen|>", "<un", "it>", "<unit>", "</", "<|", "|>", "x", "é"]
    changed = 0
    for _ in range(3000):
        text = "".join(chance.choices(pieces, k=chance.randrange(30)))
        left = words.defused(text)
        assert written.search(left) is None, text
        assert (left == text) == (written.search(text) is None)
        letters = iter(text)
        assert all(one in letters for one in left), "nothing is added, and the order kept"
        changed += left != text
    assert 500 < changed < 2900


class CountedSearch:
    """A pattern that counts the characters it was shown."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self.seen = 0

    def search(self, text: str, at: int = 0) -> re.Match[str] | None:
        found = self._pattern.search(text, at)
        self.seen += (found.end() if found else len(text)) - at
        return found


def test_tokens_within_tokens_are_taken_away_in_one_pass() -> None:
    words = letter_vocabulary()
    count = 20_000
    text = "<|lis" * count + "<|listen|>" + "ten|>" * count
    counted = CountedSearch(words._added)
    words.__dict__["_added"] = counted
    assert words.defused(text) == ""
    assert counted.seen < 10 * len(text)


def test_half_a_letter_is_refused(real: Vocabulary) -> None:
    for words in (real, letter_vocabulary()):
        for encode in (words.encode, words.encode_foreign):
            with pytest.raises(RequestError, match=r"U\+D800.* character 2"):
                encode("ab\ud800c")
            assert words.text(encode("ab\U0001f600c")) == "ab\U0001f600c"


# ---- files --------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to the checkpoint"):
        load_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="bad_token_ids"):
        load_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="bad_token_ids"):
        load_vocabulary(tmp_path)


def test_another_model_s_tokenizer_is_refused(tmp_path: Path) -> None:
    source = tokenizer_folder()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, tmp_path / name)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["added_tokens_decoder"]["151705"]
    settings["additional_special_tokens"].remove("<|listen|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokens, expected|151705|151706"):
        load_vocabulary(tmp_path)
