"""Each check finds what it looks for, and says what to do when it does not."""

import json
import socket
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent import doctor, tls
from agent.config import Config, load_config
from agent.doctor import Check
from agent.errors import ConfigError
from agent.transport import codecs, opus

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A torch that sees no GPU; tests give it one. The real one takes seconds to import."""
    cuda = types.SimpleNamespace(is_available=lambda: False)
    module = types.SimpleNamespace(
        __version__="2.13.0", cuda=cuda, version=types.SimpleNamespace(cuda="13.0")
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.fixture(autouse=True)
def _no_model_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))


def config_of(*overrides: str) -> Config:
    return load_config(None, {}, list(overrides))


# ---- what is reported -------------------------------------------------------------------------

CHECKS = [
    Check("one", "ok", "fine"),
    Check("second", "warning", "so so", "look at it"),
    Check("three", "failure", "broken", "mend it"),
]


def test_text_is_aligned_and_has_the_advice_below() -> None:
    assert doctor.as_text(CHECKS).splitlines() == [
        "ok       one     fine",
        "warning  second  so so",
        "                 try: look at it",
        "failure  three   broken",
        "                 try: mend it",
        "3 checks, 1 failed, 1 with a warning",
    ]


def test_json_is_one_document() -> None:
    document = json.loads(doctor.as_json(CHECKS))
    assert document["ok"] is False
    assert document["checks"][1] == {
        "name": "second",
        "status": "warning",
        "detail": "so so",
        "advice": "look at it",
    }


def test_only_failures_make_it_fail() -> None:
    assert doctor.exit_code(CHECKS) == 1
    assert doctor.exit_code(CHECKS[:2]) == 0


@pytest.mark.usefixtures("torch")
def test_every_check_is_made_and_this_machine_can_serve() -> None:
    checks = doctor.examine(config_of("server.port=0"))
    assert [check.name for check in checks] == [
        "Python",
        "torch",
        "CUDA",
        "checkpoint",
        "Opus",
        "echo canceller",
        "voice detector",
        "TLS",
        "keys",
        "port",
        "page and recordings",
        "engine",
    ]
    assert {check.name: check.status for check in checks if check.status != "ok"} == {
        "CUDA": "warning",
        "checkpoint": "warning",
    }
    assert all(check.advice for check in checks if check.status != "ok")


# ---- torch ------------------------------------------------------------------------------------


def test_a_gpu_is_named_with_its_memory(torch: types.SimpleNamespace) -> None:
    device = types.SimpleNamespace(name="H200", total_memory=141 * 1024**3)
    torch.cuda = types.SimpleNamespace(
        is_available=lambda: True, get_device_properties=lambda _: device
    )
    found, cuda = doctor.check_torch()
    assert (found.status, found.detail) == ("ok", "2.13.0")
    assert (cuda.status, cuda.detail) == ("ok", "H200, 141 GiB, CUDA 13.0")


def test_a_missing_torch_is_a_warning_since_the_echo_engine_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [check.status for check in doctor.check_torch()] == ["warning", "warning"]


# ---- sound ------------------------------------------------------------------------------------


def test_the_opus_that_pyav_brings_is_loaded() -> None:
    check = doctor.check_opus()
    assert check.status == "ok"
    assert check.detail.startswith("libopus ") and "bundled with PyAV" in check.detail


def test_opus_without_libopus_is_a_warning_and_without_pyav_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> opus.Libopus:
        raise ConfigError("no libopus")

    codecs.codec_source.cache_clear()
    with monkeypatch.context() as without_libopus:
        without_libopus.setattr(opus, "libopus", missing)
        check = doctor.check_opus()
        assert check.status == "warning" and "not repaired" in check.detail
        without_libopus.setattr(codecs, "PyavOpusEncoder", lambda _: missing())
        assert doctor.check_opus().status == "failure"
    codecs.codec_source.cache_clear()
    monkeypatch.setitem(sys.modules, "agent.transport.codecs", None)
    assert doctor.check_opus().status == "failure"


def test_the_echo_canceller_cancels_a_frame() -> None:
    assert doctor.check_echo_canceller(Config()).detail.endswith("cancelled a frame")
    assert "off" in doctor.check_echo_canceller(config_of("echo.canceller=off")).detail


def test_a_missing_echo_canceller_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pywebrtc_audio", None)
    check = doctor.check_echo_canceller(Config())
    assert check.status == "failure"
    assert "pywebrtc-audio" in check.detail


def test_a_missing_or_broken_detector_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing() -> Path:
        raise ConfigError("no voice detector")

    broken = tmp_path / "silero.onnx"
    broken.write_bytes(b"not a model")
    for model in (missing, lambda: broken):
        monkeypatch.setattr("agent.media.silero.packaged_model", model)
        assert doctor.check_voice_detector().status == "failure"


# ---- TLS --------------------------------------------------------------------------------------


def test_a_certificate_that_will_be_made_is_announced_and_not_made(tmp_path: Path) -> None:
    config = config_of("server.host=0.0.0.0", f"server.data_folder={tmp_path}")
    check = doctor.check_tls(config, NOW)
    assert check.status == "ok"
    assert "will be made" in check.detail
    assert list(tmp_path.iterdir()) == []
    tls.listen_plan(config)
    assert "ends 20" in doctor.check_tls(config, NOW).detail


def test_where_serve_would_refuse_to_listen_without_a_key_is_said(tmp_path: Path) -> None:
    alone = doctor.check_keys(config_of(f"server.data_folder={tmp_path}"))
    assert (alone.status, "all on this machine" in alone.detail) == ("ok", True)
    everywhere = ("server.host=0.0.0.0", f"server.data_folder={tmp_path}")
    refused = doctor.check_keys(config_of(*everywhere))
    assert refused.status == "failure" and "--no-auth" in refused.detail
    key = f"auth.keys=web:{'0' * 64}"
    assert doctor.check_keys(config_of(*everywhere, key)).detail == "a key is asked for"
    told = doctor.check_keys(config_of(*everywhere, "auth.required=false"))
    assert (told.status, "the network" in told.detail) == ("ok", True)


@pytest.mark.parametrize(
    ("left", "status"),
    [(timedelta(days=30), "ok"), (timedelta(days=3), "warning"), (timedelta(-1), "failure")],
)
def test_a_given_certificate_is_judged_by_its_end(
    tmp_path: Path, left: timedelta, status: str
) -> None:
    names = tls.CertificateNames(frozenset({"localhost"}), frozenset())
    bundle = tls.keep_certificate(tmp_path / "given.pem", names, NOW)
    config = config_of(f"server.tls_certificate={bundle}", f"server.tls_key={bundle}")
    ends = tls.certificate_end(bundle)
    assert doctor.check_tls(config, ends - left).status == status


def test_an_unusable_certificate_is_a_failure_that_names_the_setting() -> None:
    config = config_of("server.tls_certificate=/none", "server.tls_key=/none")
    check = doctor.check_tls(config, NOW)
    assert check.status == "failure"
    assert check.detail.startswith("server.tls_certificate: ")


def test_plain_http_beyond_loopback_is_a_warning() -> None:
    config = config_of("server.host=192.0.2.1", "server.http_only=true")
    assert doctor.check_tls(config, NOW).status == "warning"


# ---- port, files, engine ----------------------------------------------------------------------


def test_a_taken_port_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_HEALTH_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = doctor.check_port(config_of(f"server.port={port}"))
    assert check.status == "failure"
    assert str(port) in check.detail
    assert doctor.check_port(config_of("server.port=0")).status == "ok"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("has_tls", [False, True])
def test_a_voice_agent_that_runs_there_is_recognised(
    tmp_path: Path, host: str, has_tls: bool
) -> None:
    with health_server(tmp_path if has_tls else None, HEALTH) as port:
        check = doctor.check_port(config_of(f"server.port={port}", f"server.host={host}"))
    assert check.status == "ok" and not check.advice
    assert "voice-agent 1.2 is running there" in check.detail
    assert "engine minicpm-o, status ok, 3 calls" in check.detail


def test_a_voice_agent_that_is_down_and_another_server_are_no_good() -> None:
    with health_server(None, {**HEALTH, "status": "degraded"}) as port:
        assert doctor.check_port(config_of(f"server.port={port}")).status == "warning"
    for answer in ({"status": "ok"}, ["status"]):
        with health_server(None, answer) as port:
            check = doctor.check_port(config_of(f"server.port={port}"))
        assert check.status == "failure" and "in use" in check.detail


HEALTH = {"status": "ok", "version": "1.2", "engine": "minicpm-o", "calls": 3, "slots_free": 1}


@contextmanager
def health_server(certificates: Path | None, answer: object) -> Iterator[int]:
    """A server with TLS or without that says `answer` at /healthz; its port."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("0.0.0.0", 0), Health)
    if certificates is not None:
        names = tls.CertificateNames(frozenset({"localhost"}), frozenset())
        bundle = tls.keep_certificate(certificates / "own.pem", names, NOW)
        server.socket = tls.given_context(bundle, bundle).wrap_socket(
            server.socket, server_side=True
        )
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_address_that_is_not_ours_is_a_failure() -> None:
    assert doctor.check_port(config_of("server.host=192.0.2.254")).status == "failure"


def test_missing_files_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise FileNotFoundError("index.html is nowhere")

    monkeypatch.setattr(doctor, "web_folder", missing)
    assert doctor.check_files() == Check("page and recordings", "failure", "index.html is nowhere")


def test_the_engine_is_named_with_the_reason() -> None:
    assert doctor.check_engine(Config()).detail.startswith("echo: ")
    unknown = doctor.check_engine(config_of("engine.name=hal"))
    assert unknown.status == "failure" and unknown.advice == "set engine.name to auto"
