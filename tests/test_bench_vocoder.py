"""The vocoder's benchmark: its folders are those the loaders read, and its rows are all there."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bench.vocoder as bench
from agent.torch_parts.checkpoint import Target
from agent.vocoder.config import DitConfig, EncoderConfig, FlowConfig
from agent.vocoder.cosyvoice2_flow import Cosyvoice2Config
from agent.vocoder.loading import Token2wavSettings, load_hift, load_token2wav
from agent.vocoder.speech_tokenizer import SpeechTokenizer, TokenizerConfig
from agent.vocoder.tokenizer_file import open_speech_tokenizer
from agent.vocoder.unet import UnetConfig
from agent.vocoder.voice import VoicePreparation
from bench.random_preparation import write_preparation
from bench.random_vocoder import FULL_SIZE, VocoderSizes, random_prompt, write_token2wav
from bench.report import Report
from bench.table import table

CPU = torch.device("cpu")
ENCODER = EncoderConfig(16, 2, 8, 32, token_layers=2, mel_layers=1)
TINY = VocoderSizes(
    FlowConfig(6561, 192, 80, 0.7, ENCODER, DitConfig(80, 16, 32, 2, 2, 8)),
    Cosyvoice2Config(6561, 192, ENCODER, UnetConfig(80, 16, 32, 2, 8, 1, 2)),
    hift_channels=16,
)
SMALL_TOKENIZER = TokenizerConfig(width=64, mlp_width=64, blocks=1)
RESULTS = Path(bench.__file__).parent / "results"


def _rows(out: io.StringIO) -> dict[str, dict[str, Any]]:
    _, *rows = [json.loads(line) for line in out.getvalue().splitlines()]
    return {row["name"]: row for row in rows}


def _kept(kind: str) -> dict[str, dict[str, Any]]:
    (path,) = RESULTS.glob(f"{kind}-*-vocoder.jsonl")
    return _rows(io.StringIO(path.read_text("utf-8")))


def test_all_rows_are_measured_and_are_those_of_the_kept_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_of = {"TURN_S": 3, "_WARM_UP_S": 2, "_REPEATS": 2, "_LAUNCHES": 5, "PROMPT_TOKENS": 30}
    few_of["TOGETHER"] = 2
    for name, few in few_of.items():
        monkeypatch.setattr(bench, name, few)
    monkeypatch.setattr(bench, "settle", lambda: None)
    out = io.StringIO()
    report = Report(as_json=True, out=out)
    bench.measure_speech(report, tmp_path, Target(CPU, torch.float32), TINY)
    rows = _rows(out)
    assert {name for name in _kept("gpu") if not name.startswith("prepare_")} <= set(rows)
    assert rows["token2wav_ms_per_s"]["target"] == 12
    assert rows["token2wav_ms_per_s"]["against"] > 0
    assert rows["token2wav_2_streams_ms_per_s"]["target"] == 45
    assert rows["token2wav_first_sound_ms"]["against"] > 0
    assert rows["token2wav_stream_mb"]["value"] == rows["token2wav_stream_mb"]["against"] > 0
    assert rows["token2wav_n10_ms_per_s"]["target"] == 40
    assert rows["token2wav_n10_reference_stream_mb"]["target"] == 240
    assert all(row["value"] > 0 for name, row in rows.items() if not name.endswith("_mb"))


def test_a_random_folder_is_read_and_speaks(tmp_path: Path) -> None:
    folder = write_token2wav(tmp_path, TINY, causal=True)
    vocoder = load_token2wav(folder, Token2wavSettings(steps=2), Target(CPU, torch.float32))
    sound = vocoder.open(vocoder.voice(random_prompt(50, TINY), "anna")).push([5] * 40)
    assert len(sound) and np.isfinite(sound).all()
    assert load_hift(folder / "hift.pt", CPU).config.causal
    assert not load_hift(folder / "hift_original.pt", CPU).config.causal


def test_the_random_models_that_prepare_voices_are_taken_for_the_published(tmp_path: Path) -> None:
    folder = write_preparation(tmp_path, SMALL_TOKENIZER)
    (path,) = folder.glob("speech_tokenizer*")
    assert isinstance(open_speech_tokenizer(path), SpeechTokenizer)
    sound = np.random.default_rng(2).standard_normal(48_000).astype(np.float32)
    prompt = VoicePreparation.of_folder(folder).prepare(sound * 0.1, 24_000)
    assert (len(prompt.speech_tokens), prompt.embedding.shape) == (50, (192,))


def test_preparation_alone_is_measured_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_PREPARATIONS", 1)
    out = io.StringIO()
    bench.measure_preparation(Report(as_json=True, out=out), tmp_path, CPU, SMALL_TOKENIZER)
    rows = _rows(out)
    assert set(rows) == set(_kept("cpu"))
    assert rows["prepare_cpu_s"]["target"] == 5


def test_a_missing_gpu_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    assert bench.main(["--json"]) == 2
    assert "finds no GPU" in capsys.readouterr().err


def test_a_part_that_there_is_not_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--json", "preparing"])
    said = capsys.readouterr().err
    assert "preparing" in said and all(part in said for part in bench.PARTS)


def test_of_parts_that_are_not_named_nothing_is_written_or_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_LAUNCHES", 2)
    measured: list[Path] = []
    for part in ("token2wav", "cosyvoice2"):
        monkeypatch.setattr(
            bench, f"_measure_{part}", lambda _, folder, *__: measured.append(folder)
        )
    for parts in (("preparation",), ("cosyvoice2",), bench.PARTS):
        report = Report(as_json=True, out=io.StringIO())
        bench.measure_speech(report, tmp_path, Target(CPU, torch.float32), TINY, parts=parts)
    assert [one.name for one in measured] == ["cosyvoice2", "token2wav", "cosyvoice2"]


def test_the_full_size_is_the_published_one() -> None:
    assert (FULL_SIZE.flow.dit.layers, FULL_SIZE.flow.encoder.token_layers) == (16, 6)
    assert FULL_SIZE.cosyvoice2.unet.layers == 56


def test_the_kept_runs_make_a_table() -> None:
    shown = table(sorted(RESULTS.glob("*-vocoder.jsonl")))
    assert "`token2wav_n10_ms_per_s`" in shown and "`prepare_cpu_s`" in shown
