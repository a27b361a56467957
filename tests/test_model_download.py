"""Downloads against a hub on this machine: resumed, checked, refused with a way out."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import AgentError, CheckpointError, ConfigError
from agent.model_hub import hub as hub_module
from agent.model_hub.cache import ModelCache
from agent.model_hub.download import download
from agent.model_hub.hub import Hub, HubModel
from tests.rig import tiny_model as tiny
from tests.rig.hub_server import COMMIT, HubServer, hub_server

MODEL = HubModel("openbmb/MiniCPM-o-tiny")
SHARD = "model-00001-of-00002.safetensors"
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FILES = {
    "config.json": json.dumps(tiny.official_config()).encode(),
    "generation_config.json": b"{}",
    "twin.json": b"{}",
    "merges.txt": b"a b",
    SHARD: WEIGHTS,
    "model-00002-of-00002.safetensors": b"second",
    "assets/token2wav/flow.pt": b"flow",
    "assets/token2wav/code.py": b"raise SystemExit",
    "modeling_minicpmo.py": b"raise SystemExit",
    "README.md": b"# ",
    "assets/demo.mp4": b"0",
}
WANTED = {path for path in FILES if path not in ("README.md", "assets/demo.mp4")} - {
    "assets/token2wav/code.py",
    "modeling_minicpmo.py",
}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        running.models[MODEL.name] = dict(FILES)
        yield running


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Hub:
    # The library waits a second before it tries again.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    return Hub(server.url, offline=False)


def refusal(hub: Hub, root: Path, model: HubModel = MODEL) -> str:
    with pytest.raises(ConfigError) as caught:
        download(hub, model, root)
    return str(caught.value)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- what comes ---------------------------------------------------------------------------------


def test_what_the_model_needs_comes_and_no_code(
    hub: Hub, server: HubServer, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    folder = download(hub, MODEL, tmp_path, lambda done, total: told.append((done, total)))
    assert content(folder) == {path: FILES[path] for path in WANTED}
    assert set(server.paths()) <= WANTED
    total = sum(len(FILES[path]) for path in WANTED)
    assert told[-1] == (total, total) and told == sorted(told)


def test_it_lies_where_hugging_face_would_look_for_it(hub: Hub, tmp_path: Path) -> None:
    folder = download(hub, MODEL, tmp_path)
    import huggingface_hub

    found = huggingface_hub.snapshot_download(MODEL.name, cache_dir=tmp_path, local_files_only=True)
    assert Path(found) == folder
    assert huggingface_hub.try_to_load_from_cache(MODEL.name, SHARD, cache_dir=tmp_path) == str(
        folder / SHARD
    )


def test_the_second_time_nothing_is_fetched(hub: Hub, server: HubServer, tmp_path: Path) -> None:
    download(hub, MODEL, tmp_path)
    server.ranges.clear()
    told: list[tuple[int, int]] = []
    download(hub, MODEL, tmp_path, lambda done, total: told.append((done, total)))
    assert server.ranges == [] and told == []


def test_a_token_is_sent_when_there_is_one(
    hub: Hub, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(hub, MODEL, tmp_path)
    assert server.tokens == {"Bearer hf_secret"}


# ---- interruptions ------------------------------------------------------------------------------


def test_a_broken_connection_goes_on_where_it_broke(
    hub: Hub, server: HubServer, tmp_path: Path
) -> None:
    server.cuts[SHARD] = [300_000]
    folder = download(hub, MODEL, tmp_path)
    asked = [start for path, start in server.ranges if path == SHARD]
    assert asked[0] == 0 and 0 < asked[1] <= 300_000
    assert (folder / SHARD).read_bytes() == WEIGHTS


def test_a_killed_download_goes_on_in_the_next_process(
    hub: Hub, server: HubServer, tmp_path: Path
) -> None:
    server.holds[SHARD] = 700_000
    code = (
        "import sys; from pathlib import Path; import huggingface_hub.constants as constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 100_000\n"
        "from agent.model_hub.download import download\n"
        "from agent.model_hub.hub import Hub, HubModel\n"
        "download(Hub(), HubModel(sys.argv[1]), Path(sys.argv[2]))"
    )
    environ = os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", code, MODEL.name, str(tmp_path)], env=environ
    ) as process:
        partial = partial_of(tmp_path, SHARD, hub)
        assert server.held.wait(60)
        while not (partial.is_file() and partial.stat().st_size):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.02)
        process.send_signal(signal.SIGKILL)
    kept = partial.stat().st_size
    assert 0 < kept <= 700_000
    assert ModelCache(tmp_path, MODEL).whole_snapshot() is None
    server.holds.clear()
    server.ranges.clear()
    folder = download(hub, MODEL, tmp_path)
    assert (SHARD, kept) in server.ranges and (SHARD, 0) not in server.ranges
    assert (folder / SHARD).read_bytes() == WEIGHTS


def test_whoever_hears_of_the_progress_may_stop_it(
    hub: Hub, server: HubServer, tmp_path: Path
) -> None:
    class Enough(AgentError):
        pass

    def stop(done: int, total: int) -> None:
        if done > 300_000:
            raise Enough

    with pytest.raises(Enough):
        download(hub, MODEL, tmp_path, stop)
    assert not [one for one in threading.enumerate() if one.name.startswith("download")]
    kept = partial_of(tmp_path, SHARD, hub).stat().st_size
    assert 0 < kept < len(WEIGHTS)
    download(hub, MODEL, tmp_path)
    assert server.ranges[-1] == (SHARD, kept)


def partial_of(root: Path, path: str, hub: Hub) -> Path:
    file = next(one for one in hub.listing(MODEL).files if one.path == path)
    return ModelCache(root, MODEL).partial(file)


def test_a_download_that_is_running_elsewhere_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    import fcntl

    partial = partial_of(tmp_path, SHARD, hub)
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is downloading it" in refusal(hub, tmp_path)


# ---- what is not what was announced -------------------------------------------------------------


@pytest.mark.parametrize("path", [SHARD, "merges.txt"])
def test_corrupted_bytes_are_refused_and_fetched_anew(
    hub: Hub, server: HubServer, tmp_path: Path, path: str
) -> None:
    server.corrupt.add(path)
    message = refusal(hub, tmp_path)
    assert f"{path} came damaged" in message and "run it again" in message
    assert not list(tmp_path.glob(f"**/snapshots/*/{path}"))
    server.corrupt.clear()
    assert (download(hub, MODEL, tmp_path) / path).read_bytes() == FILES[path]


def test_a_partial_file_of_wrong_bytes_is_noticed(hub: Hub, tmp_path: Path) -> None:
    partial = partial_of(tmp_path, SHARD, hub)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 1000)
    assert "came damaged" in refusal(hub, tmp_path)
    partial.write_bytes(b"x" * (len(WEIGHTS) + 1))
    assert (download(hub, MODEL, tmp_path) / SHARD).read_bytes() == WEIGHTS


def test_another_model_is_refused_before_its_weights_come(
    hub: Hub, server: HubServer, tmp_path: Path
) -> None:
    server.models[MODEL.name]["config.json"] = b'{"model_type": "llama"}'
    with pytest.raises(CheckpointError, match="a model of the type 'llama'"):
        download(hub, MODEL, tmp_path)
    assert server.paths() == ["config.json"]
    server.models[MODEL.name] = {"config.json": b"{}", "model-Q4_K_M.gguf": b"GGUF"}
    assert "has no safetensors weights" in refusal(hub, tmp_path)


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json", "a\\..\\evil.json"])
def test_a_hub_cannot_write_outside_the_folder(
    hub: Hub, server: HubServer, tmp_path: Path, path: str
) -> None:
    server.models[MODEL.name][path] = b"{}"
    assert "names a file outside its folder" in refusal(hub, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- what a hub refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "RepoNotFound", "has no model 'openbmb/MiniCPM-o-tiny': check the spelling"),
        (401, "RepoNotFound", "if it is private, set HF_TOKEN"),
        (401, "GatedRepo", "gives access on request"),
        (403, "GatedRepo", "then set HF_TOKEN"),
        (403, "", "refuses access (403): check HF_TOKEN"),
        (503, "", "answered with status 503: run it again later"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: Hub, server: HubServer, tmp_path: Path, status: int, code: str, said: str
) -> None:
    server.refusals[MODEL.name] = (status, code)
    assert said in refusal(hub, tmp_path)


def test_an_unknown_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    message = refusal(hub, tmp_path, HubModel(MODEL.name, "v9"))
    assert message == f"model.revision: {MODEL.name} has no revision 'v9'"


def test_a_known_revision_is_found_again(hub: Hub, tmp_path: Path) -> None:
    folder = download(hub, HubModel(MODEL.name, COMMIT), tmp_path)
    assert folder.name == COMMIT
    assert not list(tmp_path.glob("*/refs/*"))


def test_no_network_and_offline_are_told_apart(hub: Hub, server: HubServer, tmp_path: Path) -> None:
    nobody = Hub("http://127.0.0.1:9", offline=False)
    assert "cannot be reached" in refusal(nobody, tmp_path)
    assert "HF_HUB_OFFLINE forbids" in refusal(Hub(server.url, offline=True), tmp_path)
    assert server.ranges == []


# ---- the disk -----------------------------------------------------------------------------------


def test_a_model_larger_than_the_disk_is_refused_before_it_comes(
    hub: Hub, server: HubServer, tmp_path: Path
) -> None:
    server.sizes[SHARD] = 10**15
    message = refusal(hub, tmp_path)
    assert "1000000.0 GB are to be downloaded" in message and "set model.folder" in message
    assert server.ranges == []


def test_a_disk_that_fills_up_keeps_what_came(
    hub: Hub, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    monkeypatch.setattr("agent.model_hub.download._SPARE_BYTES", -(10**9))  # as if it had room
    try:
        message = refusal(hub, disk)
        assert "the disk is full: make room and run it again" in message
        assert not list(disk.glob("**/refs/*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_takes_nothing_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(hub, tmp_path / "file")
    assert message.startswith("model.folder: ") and os.strerror(errno.ENOTDIR) in message


def test_the_library_s_own_constants_are_used() -> None:
    assert hub_module.Hub().endpoint.startswith("http")
    assert hub_module.hub_cache().is_absolute()
