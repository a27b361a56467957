"""A machine is held against the modules at load; one that says something else is not used."""

import functools
import logging
from typing import Any

import pytest
import torch

from agent.vocoder import loading
from agent.vocoder.batched.proof import Modules, Proof, proof_of
from agent.vocoder.flow import FlowSettings, Noise
from agent.vocoder.loading import HiftSound, install_machine, prepare_graphs
from agent.vocoder.token2wav import StreamSettings, Token2wav
from tests.rig.module_machine import ModuleMachine
from tests.rig.tiny_cosyvoice2 import golden_prompt
from tests.rig.tiny_flow import tiny_flow
from tests.rig.tiny_hift import classic_hift


def _vocoder() -> Token2wav:
    sound = HiftSound(classic_hift(), classic_hift(), 1, "unity")
    flow = tiny_flow(FlowSettings(steps=1, estimator_memory="prompt_plus_recent"))
    return Token2wav(flow, sound, StreamSettings(eager=True), Noise.seeded(1), tiny_flow)


@functools.cache
def _proof(name: str = "", error: float = 0.0) -> Proof:
    torch.set_num_threads(1)
    vocoder = _vocoder()
    vocoder.machine = machine = ModuleMachine(vocoder, most=2)
    voice = vocoder.voice(golden_prompt(30), "anna")
    if name:
        setattr(machine, name, error)
    modules = Modules(vocoder.flow, vocoder.noise, vocoder.sounding.open_tail("anna"))
    return proof_of(machine, voice, modules)


def test_a_machine_that_says_what_the_modules_say_is_proved() -> None:
    proof = _proof()
    assert proof.holds and max(proof.flow_db, proof.sound_db, proof.graph_db) < -150


@pytest.mark.parametrize(
    ("name", "error", "at_db", "holds"),
    [
        ("mel_error", 1e-2, -40, False),
        ("mel_error", 1e-4, -80, True),
        ("sound_error", 0.1, -20, False),
        ("sound_error", 1e-2, -40, True),
        ("graph_error", 1e-2, -40, False),
        ("graph_error", float("nan"), float("inf"), False),
        ("mel_error", float("inf"), float("inf"), False),
    ],
)
def test_what_differs_too_much_is_found(name: str, error: float, at_db: float, holds: bool) -> None:
    proof = _proof(name, error)
    found = {"mel": proof.flow_db, "sound": proof.sound_db, "graph": proof.graph_db}
    assert found[name.split("_")[0]] == pytest.approx(at_db, abs=0.5)
    assert proof.holds == holds


def _installed(make: Any, caplog: pytest.LogCaptureFixture) -> Token2wav:
    vocoder = _vocoder()
    with caplog.at_level(logging.WARNING):
        install_machine(vocoder, lambda: make(vocoder))
    return vocoder


def test_a_machine_that_is_proved_is_used_and_its_room_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    vocoder = _installed(ModuleMachine, caplog)
    assert isinstance(vocoder.machine, ModuleMachine) and not caplog.records
    rooms = vocoder.machine.rooms
    for places in (rooms.slots, rooms.token_rows, rooms.mel_rows, rooms.estimator_rows):
        assert places.left == places.count


def test_without_proof_the_vocoder_goes_without(caplog: pytest.LogCaptureFixture) -> None:
    vocoder = _installed(lambda one: ModuleMachine(one, mel_error=0.5), caplog)
    assert vocoder.machine is None
    (record,) = caplog.records
    assert "goes without graphs" in record.getMessage() and "mel -6 dB" in record.getMessage()
    voice = vocoder.voice(golden_prompt(30), "anna")
    assert vocoder.open(voice).push(range(40)).size > 0


def test_where_kernels_cannot_be_compiled_the_vocoder_goes_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(vocoder: Token2wav) -> Any:
        raise ModuleNotFoundError("No module named 'triton'")

    vocoder = _installed(fail, caplog)
    assert vocoder.machine is None and "triton" in caplog.text


def test_what_is_wrong_with_ourselves_is_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    def fail(vocoder: Token2wav) -> Any:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        _installed(fail, caplog)


def test_without_a_gpu_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "machine_of", None)
    vocoder = _vocoder()
    prepare_graphs(vocoder, 4)
    assert vocoder.machine is None and vocoder.most_pushes == 1
