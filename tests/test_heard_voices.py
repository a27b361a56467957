"""Reference voices as the model hears them: once each, and for no longer than they are wanted."""

import gc
from weakref import ref

import numpy as np
import pytest
import torch

from agent.duplex.heard_voices import HeardVoices
from agent.errors import CheckpointError, RequestError
from agent.interfaces import VoiceKey
from agent.types import FloatArray
from tests.rig.tiny_mind import tiny_mind


class Recordings:
    """Counts how often each is read; that of `c` is gone."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def ids(self) -> tuple[str, ...]:
        return ("a", "b", "c")

    def resolve(self, voice_id: str, language: str = "") -> VoiceKey:
        return VoiceKey(voice_id.upper())

    def samples(self, key: str) -> FloatArray:
        if key == "C":
            raise CheckpointError("gone")
        self.read.append(str(key))
        random = np.random.default_rng(ord(key[0]))
        return random.uniform(-0.3, 0.3, 48_000).astype(np.float32)


def test_each_voice_is_heard_once_for_calls_and_once_for_turns() -> None:
    recordings = Recordings()
    heard = HeardVoices(tiny_mind(), recordings)
    a, b = heard.resolve("a"), heard.resolve("b")
    first = heard.duplex(a)
    assert heard.duplex(a) is first
    other = heard.duplex(b)
    assert first.shape == other.shape and not torch.equal(first, other)
    turns = heard.turns(a)
    assert not torch.equal(turns, first) and heard.turns(a) is turns
    assert recordings.read == ["A", "B", "A"]
    assert torch.equal(first, tiny_mind().hear_voice(recordings.samples("A")))


def test_what_was_heard_is_kept_while_its_key_is_held_however_many_others_are_heard() -> None:
    recordings = Recordings()
    heard = HeardVoices(tiny_mind(), recordings)
    key = heard.resolve("a")
    first = heard.duplex(key)
    for other in range(40):
        heard.duplex(VoiceKey(f"x{other}"))
    assert heard.duplex(key) is first
    assert recordings.read.count("A") == 1


def test_what_was_heard_is_freed_with_its_key() -> None:
    heard = HeardVoices(tiny_mind(), Recordings())
    key = heard.resolve("a")
    vectors = ref(heard.duplex(key))
    gc.collect()
    assert vectors() is not None
    del key
    gc.collect()
    assert vectors() is None


def test_a_voice_whose_recording_is_gone_is_refused_each_time() -> None:
    heard = HeardVoices(tiny_mind(), Recordings())
    key = heard.resolve("c")
    for hear in (heard.duplex, heard.turns, heard.duplex):
        with pytest.raises(RequestError, match="cannot be used") as refusal:
            hear(key)
        assert refusal.value.code == "voice_damaged"
