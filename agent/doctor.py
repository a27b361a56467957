"""`voice-agent doctor`: tries everything that a call needs, and says what to do about the rest."""

import contextlib
import errno
import http.client
import importlib
import importlib.metadata
import json
import platform
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from agent import __version__, model_hub, tls
from agent.config import Config, ModelSection
from agent.duplex import inspection
from agent.duplex.tokens import VOCABULARY_SIZE
from agent.errors import CheckpointError, ConfigError, MediaError
from agent.model_hub import choice, gpus, soundness, sources, voice
from agent.model_hub.cache import ModelCache
from agent.model_hub.download import missing_bytes, needed
from agent.model_hub.hub import Hub, HubModel
from agent.resources import assets_folder, web_folder
from agent.types import MIC_FRAME_SAMPLES, SPEECH_FRAME_SAMPLES, SPEECH_RATE_HZ, AudioFrame

Status: TypeAlias = Literal["ok", "warning", "failure"]

_GIB = 1024**3
_FOR_A_GPU = "`nvidia-smi`: if it lists no GPU, its driver is missing; MiniCPM-o needs both"
_GET_MODEL = f"--model {sources.PUBLISHED} downloads it (19 GB); or --model and a folder"
_HEALTH_S, _MOST_HEALTH_BYTES = 2.0, 65536
_HEALTH_KEYS = frozenset({"status", "version", "engine", "calls", "slots_free"})


@dataclass(frozen=True, slots=True)
class Check:
    """What was found. `failure` means that `serve` or every call fails; `advice` how to cure it."""

    name: str
    status: Status
    detail: str
    advice: str = ""


def examine(config: Config) -> list[Check]:
    """Every check, in reading order. Opens and closes the port; writes no file."""
    model = check_model(config)
    is_asked = bool(config.model.source) or config.engine.name == choice.ENGINE
    # What is wrong with the model that was asked for is why there is no engine: told once.
    is_told = is_asked and config.engine.name in ("auto", choice.ENGINE) and exit_code(model) != 0
    return [
        check_python(),
        *check_torch(),
        *model,
        check_opus(),
        check_echo_canceller(config),
        check_voice_detector(),
        check_tls(config, datetime.now(UTC)),
        check_keys(config),
        check_port(config),
        check_files(),
        *([] if is_told else [check_engine(config)]),
    ]


def exit_code(checks: Sequence[Check]) -> int:
    """1 when something failed; warnings are not failures."""
    return int(any(check.status == "failure" for check in checks))


def as_text(checks: Sequence[Check]) -> str:
    """A line for each check in columns, advice below its check."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<8} {check.name:<{width}}  {check.detail}")
        if check.advice:
            lines.append(f"{'':<8} {'':<{width}}  try: {check.advice}")
    failures = sum(check.status == "failure" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    lines.append(f"{len(checks)} checks, {failures} failed, {warnings} with a warning")
    return "\n".join(lines) + "\n"


def as_json(checks: Sequence[Check]) -> str:
    """One JSON document: version, whether all is well, and the checks."""
    document = {
        "version": __version__,
        "ok": exit_code(checks) == 0,
        "checks": [asdict(check) for check in checks],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


# ---- the checks -------------------------------------------------------------------------------


def check_python() -> Check:
    """The interpreter; the package does not install on one that is too old."""
    return Check("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def check_torch() -> list[Check]:
    """torch and the GPU; the first check that imports torch, which takes seconds."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        broken = Check("torch", "warning", f"does not import: {error}", "reinstall the package")
        return [broken, Check("CUDA", "warning", "unknown without torch")]
    found = Check("torch", "ok", torch.__version__)
    if not torch.cuda.is_available():
        detail = "no GPU that torch can use: only engines that need none can run"
        return [found, Check("CUDA", "warning", detail, _FOR_A_GPU)]
    device = torch.cuda.get_device_properties(0)
    detail = f"{device.name}, {device.total_memory / _GIB:.0f} GiB, CUDA {torch.version.cuda}"
    return [found, Check("CUDA", "ok", detail)]


def check_model(config: Config) -> list[Check]:
    """The checkpoint, by its files alone: nothing is downloaded, loaded or run."""
    model = config.model
    try:
        source = sources.locate(model)
        if source is None:
            return [_no_model(config.engine.name)]
        if isinstance(source, HubModel):
            return [_not_downloaded(source, model), check_memory(source, config)]
        identity = inspection.identify(source)
    except ConfigError as error:
        # The hub's errors say themselves what to do.
        advice = _GET_MODEL if isinstance(error, CheckpointError) else ""
        return [Check("checkpoint", "failure", str(error), advice)]
    found = Check("checkpoint", "ok", f"MiniCPM-o 4.5 in {identity.folder}")
    return [
        found,
        check_weights(identity, model),
        check_tokenizer(identity.folder),
        check_voice(config, identity.folder),
        check_memory(source, config),
    ]


def _no_model(engine: str) -> Check:
    if engine == choice.ENGINE:
        return Check("checkpoint", "failure", f"none, and {engine} needs one", _GET_MODEL)
    return Check("checkpoint", "warning", "none: the echo engine answers", _GET_MODEL)


def _not_downloaded(source: HubModel, model: ModelSection) -> Check:
    cache = ModelCache(sources.downloads(model), source)
    files = needed(Hub().listing(source))
    missing, free = missing_bytes(cache, files), cache.free_bytes()
    detail = (
        f"{source} is not here yet: {missing / 1e9:.1f} GB of {len(files)} files are missing; "
        f"{cache.root} has {free / 1e9:.1f} GB free"
    )
    if free < missing:
        return Check("checkpoint", "failure", detail, "make room, or set model.folder")
    return Check("checkpoint", "warning", detail, "`voice-agent serve` downloads it at its start")


def check_weights(identity: inspection.Identity, model: ModelSection) -> Check:
    """Every key and shape against the model, by the headers of the shards."""
    try:
        weights = inspection.inspect_weights(identity, soundness.extra_weights(model))
    except ConfigError as error:
        return Check("weights", "failure", str(error), "download what differs again")
    except (ImportError, OSError) as error:
        return Check("weights", "warning", f"cannot be compared: {error}", "reinstall torch")
    dtypes = ", ".join(sorted(weights.dtypes))
    detail = (
        f"{weights.tensors} tensors in {len(identity.weight_files)} files, "
        f"{weights.parameters / 1e9:.2f} billion parameters, "
        f"{identity.size.weights / 1e9:.2f} GB of {dtypes}: all as expected"
    )
    return Check("weights", "ok", detail)


def check_tokenizer(folder: Path) -> Check:
    """Its files, and the tokens that the code knows by number."""
    try:
        inspection.inspect_tokenizer(folder)
    except ConfigError as error:
        return Check("tokenizer", "failure", str(error), "download its files again")
    return Check("tokenizer", "ok", f"{VOCABULARY_SIZE} tokens, as expected")


def check_voice(config: Config, folder: Path) -> Check:
    """What gives the model its voice."""
    if config.vocoder.name == "off":
        return Check("voice files", "ok", "not wanted (vocoder.name): answers come as captions")
    where = voice.vocoder_folder(config, folder)
    missing = inspection.missing_vocoder_files(where)
    if missing:
        detail = f"{', '.join(missing)} missing in {where}: answers come as captions only"
        if config.vocoder.folder or config.vocoder.name != "auto":
            return Check("voice files", "failure", detail, "download them, or mend vocoder.folder")
        return Check("voice files", "warning", detail, "download them, or set vocoder.folder")
    return Check("voice files", "ok", f"{len(inspection.VOCODER_FILES) + 1} in {where}")


def check_memory(source: sources.Source, config: Config) -> Check:
    """What the model takes of the GPU, and what that has free now."""
    size, model = choice.model_size(source, config), config.model
    needs = size.memory_bytes(model.slots, model.context_tokens)
    detail = f"{needs / _GIB:.1f} GiB for {model.slots} slots of {model.context_tokens} tokens"
    if model.device == "cpu":
        return Check("memory", "warning", f"{detail}, on the CPU", "model.device=auto, for calls")
    gpu = gpus.look_here(gpus.gpu_number(model.device))
    fault = choice.room_fault(gpu, source, config)
    if fault:
        advice = _FOR_A_GPU if isinstance(gpu, gpus.NoGpu) else "a GPU with more room"
        return Check("memory", "warning", f"{detail} needed; {fault}", advice)
    return Check("memory", "ok", detail)


def check_opus() -> Check:
    """Encodes 20 ms; says which library codes every call's sound."""
    advice = "reinstall the package av from its wheel"
    try:
        codecs = importlib.import_module("agent.transport.codecs")
        codecs.speech_encoder().encode(np.zeros(SPEECH_FRAME_SAMPLES, np.float32))
        codecs.audio_decoder("audio/opus", codecs.OPUS_CLOCK_HZ)
    except (ConfigError, MediaError, ImportError, OSError) as error:
        return Check("Opus", "failure", str(error), advice)
    source = codecs.codec_source()
    if source.kind == "pyav":
        detail = f"{source.detail}: lost packets are not repaired"
        return Check("Opus", "warning", detail, f"{advice}, or install libopus0")
    return Check("Opus", "ok", source.detail)


def check_echo_canceller(config: Config) -> Check:
    """Runs one frame through AEC3."""
    if config.echo.canceller == "off":
        return Check("echo canceller", "ok", "off, as configured")
    advice = "reinstall pywebrtc-audio, or set echo.canceller to off"
    try:
        canceller = importlib.import_module("agent.media.echo_canceller").Aec3()
        far = np.zeros(SPEECH_FRAME_SAMPLES, np.float32)
        canceller.push_far(AudioFrame(far, SPEECH_RATE_HZ, 0))
        cleaned = canceller.cancel(np.zeros(MIC_FRAME_SAMPLES, np.float32))
    except (ConfigError, ImportError, OSError) as error:
        return Check("echo canceller", "failure", str(error), advice)
    if cleaned.shape != (MIC_FRAME_SAMPLES,) or not np.isfinite(cleaned).all():
        return Check("echo canceller", "failure", "a frame came out broken", advice)
    version = importlib.metadata.version("pywebrtc-audio")
    return Check("echo canceller", "ok", f"AEC3 (pywebrtc-audio {version}) cancelled a frame")


def check_voice_detector() -> Check:
    """Runs one frame of silence through the detector's model."""
    advice = "reinstall silero-vad"
    try:
        vad = importlib.import_module("agent.media.vad")
    except (ImportError, OSError) as error:
        return Check("voice detector", "failure", str(error), advice)
    try:
        silence = np.zeros(vad.VAD_FRAME_SAMPLES + 64, np.float32)
        likelihood, _ = vad.SileroModel().step(silence, np.zeros((2, 1, 128), np.float32))
    except ConfigError as error:
        return Check("voice detector", "failure", str(error), advice)
    if not 0 <= likelihood < 0.5:
        detail = f"takes silence for speech (likelihood {likelihood:.2f})"
        return Check("voice detector", "failure", detail, advice)
    detail = f"Silero {importlib.metadata.version('silero-vad')} judged a frame"
    return Check("voice detector", "ok", detail)


def check_keys(config: Config) -> Check:
    """Who is let in, and whether `serve` would refuse to listen for want of a key."""
    try:
        return Check("keys", "ok", importlib.import_module("agent.api.auth").who_is_let_in(config))
    except ConfigError as error:
        return Check("keys", "failure", str(error))


def check_tls(config: Config, now: datetime) -> Check:
    """What `serve` would do, without making a certificate."""
    server = config.server
    url = tls.server_url(server)
    if not tls.uses_tls(server):
        if tls.is_loopback(server.host):
            return Check("TLS", "ok", f"none needed on loopback: {url}")
        advice = "unset server.http_only, unless a TLS proxy stands in front"
        return Check("TLS", "warning", f"{url}: browsers deny microphone and camera", advice)
    try:
        if server.tls_certificate or server.tls_key:
            return _given_certificate(config, url, now)
        return _self_signed(config, url)
    except ConfigError as error:
        return Check("TLS", "failure", str(error), "name a PEM certificate and its own key")


def _given_certificate(config: Config, url: str, now: datetime) -> Check:
    tls.ensure_certificate(config)
    ends = tls.certificate_end(Path(config.server.tls_certificate))
    detail = f"{url} with {config.server.tls_certificate}, ends {ends:%Y-%m-%d}"
    if ends < now:
        return Check("TLS", "failure", detail, "browsers refuse an ended certificate: renew it")
    if ends - now < tls.RENEWAL:
        return Check("TLS", "warning", detail, "renew the certificate soon")
    return Check("TLS", "ok", detail)


def _self_signed(config: Config, url: str) -> Check:
    path = tls.self_signed_path(config)
    if not path.exists():
        detail = f"{url}; a self-signed certificate will be made at first start: {path}"
        return Check("TLS", "ok", detail)
    ends = tls.certificate_end(path)
    return Check("TLS", "ok", f"{url} with the self-signed {path}, ends {ends:%Y-%m-%d}")


def check_port(config: Config) -> Check:
    """Binds the address for a moment."""
    host, port = config.server.host, config.server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server itself does; else a port just released would look taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and (health := _health_there(config)):
            return _ours(f"{host} port {port}", health)
        detail = f"{host} port {port}: {error.strerror}"
        return Check("port", "failure", detail, "choose another server.host or server.port")
    return Check("port", "ok", f"{host} port {port} is free")


def _ours(address: str, health: Mapping[str, object]) -> Check:
    detail = (
        f"voice-agent {health['version']} is running there, on {address}: "
        f"engine {health['engine']}, status {health['status']}, {health['calls']} calls"
    )
    if health["status"] == "ok":
        return Check("port", "ok", detail)
    return Check("port", "warning", detail, "its log says why")


def _health_there(config: Config) -> Mapping[str, object]:
    """What a voice-agent that listens there says of itself; empty when it is none."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(
        config.server.host, config.server.host
    )
    # Unverified, as its certificate may be self-signed; nothing is told to who answers.
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with_tls = http.client.HTTPSConnection(
        host, config.server.port, timeout=_HEALTH_S, context=unverified
    )
    plain = http.client.HTTPConnection(host, config.server.port, timeout=_HEALTH_S)
    # It may have been started with other settings than these.
    ways = (with_tls, plain) if tls.uses_tls(config.server) else (plain, with_tls)
    return next((health for way in ways if (health := _health(way))), {})


def _health(connection: http.client.HTTPConnection) -> Mapping[str, object]:
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/healthz")
            health = json.loads(connection.getresponse().read(_MOST_HEALTH_BYTES))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return {}
    return health if isinstance(health, dict) and health.keys() >= _HEALTH_KEYS else {}


def check_files() -> Check:
    """The page and the recordings that travel with the package."""
    try:
        detail = f"{web_folder()}, {assets_folder()}"
    except FileNotFoundError as error:
        return Check("page and recordings", "failure", str(error))
    return Check("page and recordings", "ok", detail)


def check_engine(config: Config) -> Check:
    """Which engine would answer, and why."""
    name = config.engine.name
    try:
        found = model_hub.choose(config, gpus.look_here)
    except ConfigError as error:
        advice = "" if name in ("auto", choice.ENGINE) else "set engine.name to auto"
        return Check("engine", "failure", str(error), advice)
    if name == "auto" and config.model.source and found.name != choice.ENGINE:
        detail = f"{found.name}, and not the model: {found.reason}"
        advice = f"`voice-agent serve --engine {choice.ENGINE}` takes the model all the same"
        return Check("engine", "warning", detail, advice)
    return Check("engine", "ok", f"{found.name}: {found.reason}")
