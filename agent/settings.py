"""The settings themselves: default, range and description of each stand beside its field.

How they are read and merged is `agent.config`'s matter; everybody imports them from there.
"""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from agent.auth_settings import AuthSection
from agent.model_settings import ChatSettings, ModelSection, VocoderSection, VoicesSection
from agent.setting_kinds import (
    Addresses,
    Hosts,
    IceServers,
    Networks,
    Origins,
    Section,
    TurnSecret,
)
from agent.tool_settings import ToolSettings
from agent.types import CallMode, SessionSettings, TurnDetection

# The defaults of a call and of turn taking stand beside the fields of these two types.
_CALL = SessionSettings(model="")
_TURNS = TurnDetection()


class ServerSettings(Section):
    """Where the server listens and what it lets in."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8006, ge=0, le=65535, description="TCP port; 0 takes any free one.")
    http_only: bool = Field(
        default=False,
        description="Never use TLS. Browsers then deny microphone and camera beyond localhost.",
    )
    tls_certificate: str = Field(default="", description="PEM file of the certificate (chain).")
    tls_key: str = Field(default="", description="PEM file of the certificate's private key.")
    data_folder: str = Field(
        default="",
        description="Where the server keeps what it makes, the self-signed certificate for one; "
        "empty is `voice-agent` in the user's data folder.",
    )
    cors_origins: Origins = Field(
        default=("*",),
        strict=False,
        description="Pages of which origins may call the server; `*` is any that has a key, and "
        "where no key is asked for those of this machine.",
    )
    public_hosts: Hosts = Field(
        default=(),
        strict=False,
        description="Names by which clients reach the server, as behind a proxy; addresses and "
        "this machine's own names need not be told. Without keys others are refused.",
    )
    proxies: Networks = Field(
        default=(),
        strict=False,
        description="Proxies in front of the server, whose X-Forwarded-For says who asks.",
    )
    max_body_bytes: int = Field(
        default=262_144, ge=1024, le=67_108_864, description="Largest HTTP request body."
    )


class EngineChoice(Section):
    """What answers."""

    name: str = Field(
        default="auto", min_length=1, description="Engine; `auto` takes the best that can run here."
    )


class CallSettings(Section):
    """Limits of calls."""

    max_calls: int = Field(
        default=16, ge=1, le=1000, description="Calls at a time; more get a 503."
    )
    max_duration_s: float = Field(default=3600.0, ge=1, le=86_400, description="Longest call.")
    connect_timeout_s: float = Field(
        default=10.0, ge=1, le=120, description="A call that is not connected by then is dropped."
    )
    watchdog_s: float = Field(
        default=3.5,
        ge=1,
        le=30,
        description="A peer that is silent on the wire for so long is gone: the engine does "
        "nothing more for its call.",
    )
    return_s: float = Field(
        default=12.0,
        ge=0,
        le=25,
        description="How long after that its call is kept, for it to come back by another way "
        "(ICE restart), unless the place is needed for a new one.",
    )
    max_message_bytes: int = Field(
        default=262_144,
        ge=1024,
        le=67_108_864,
        description="Largest event that a client may send; over a WebSocket, where it may hold "
        "sound, 4194304 where this is less.",
    )
    retry_after_s: int = Field(
        default=5, ge=1, le=3600, description="When a refused caller is told to try again."
    )
    shutdown_s: float = Field(
        default=8.0, ge=0, le=8, description="How long calls may take to end after SIGTERM."
    )


class RtcSettings(Section):
    """How WebRTC peers find the server."""

    # Before the servers, which are checked by it.
    turn_secret: TurnSecret = Field(
        default="",
        description="What the server shares with its TURN servers: of those without user and "
        "password, each call and each client gets a pair of its own, which expires.",
    )
    ice_servers: IceServers = Field(
        default=(),
        strict=False,
        description="STUN and TURN servers; clients that may call are told of them, too.",
    )
    addresses: Addresses = Field(
        default=(),
        strict=False,
        description="Addresses to offer to peers; empty offers all of this machine, and "
        "127.0.0.1 too when the server listens on loopback.",
    )

    @field_validator("ice_servers")
    @classmethod
    def _have_credentials(cls, servers: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        bare = [each for each in servers if each.startswith("turn") and "@" not in each]
        if bare and not info.data.get("turn_secret"):
            raise ValueError("a TURN server without user and password needs rtc.turn_secret")
        return servers


class SessionDefaults(Section):
    """What a call starts with; clients may change it for their call.

    The ranges lie within those of the protocol, so that a client may send back what it was told.
    """

    # The longest that still fits into one event of the default size, however it is escaped.
    instructions: str = Field(
        default=_CALL.instructions, max_length=20_000, description="The system prompt."
    )
    voice: str = Field(
        default=_CALL.voice,
        max_length=256,
        description="Id of the voice; empty takes the first one of the language.",
    )
    prompt_voice: str = Field(
        default=_CALL.prompt_voice,
        max_length=256,
        description="Id of the voice whose manner the model takes on; empty is the voice itself.",
    )
    language: str = Field(
        default=_CALL.language, min_length=2, max_length=64, description="Language of the answers."
    )
    eagerness: float = Field(
        default=_CALL.eagerness, ge=0, le=1, description="Readiness to speak: 0 waits, 1 jumps in."
    )
    mode: CallMode = Field(
        default=_CALL.mode, description="`half_duplex` does not listen while the agent speaks."
    )
    max_slices: int = Field(
        default=_CALL.max_slices,
        ge=1,
        le=9,
        description="Into how many tiles a picture may be cut.",
    )
    pictures_per_unit: int = Field(
        default=_CALL.pictures_per_unit, ge=0, le=8, description="Camera pictures for each second."
    )
    early_units: bool = Field(
        default=_CALL.early_units,
        description="Once the user seems to have finished, do not wait for the end of the second: "
        "let the engine decide as if silence followed, and take that back if it does not.",
    )
    transcription: Literal["auto", "off"] = Field(
        default="auto",
        description="Write down what users say where their clients ask for it; `auto` asks the "
        "model by a chat of its own where it does not do so by itself, which costs GPU time.",
    )


class TurnDefaults(Section):
    """How the end of the user's turn is found, unless the client says otherwise."""

    kind: Literal["server_vad", "semantic_vad"] = Field(
        default=_TURNS.kind, description="Who finds it: the voice detector or the engine."
    )
    threshold: float = Field(
        default=_TURNS.threshold,
        ge=0,
        le=1,
        description="Speech probability that counts as speech.",
    )
    prefix_padding_ms: int = Field(
        default=_TURNS.prefix_padding_ms,
        ge=0,
        le=2000,
        description="Sound kept from before the onset.",
    )
    silence_duration_ms: int = Field(
        default=_TURNS.silence_duration_ms,
        ge=100,
        le=10_000,
        description="Silence that ends a turn.",
    )


class BargeInSettings(Section):
    """When the user's voice silences the agent; `agent.media.barge_in` says how it works."""

    # Layer rules keep this file from reading the defaults there; a test holds the two together.
    eagerness: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="How readily the agent yields: 0 insists, 1 yields to a word. "
        "Moves the thresholds below; at 0.5 they hold as they are.",
    )
    guard_s: float = Field(
        default=2.0,
        ge=0,
        le=10,
        description="In so much of the agent's first words only speech of `sure_ms` interrupts, "
        "since the echo canceller still adapts.",
    )
    duck_score: float = Field(
        default=0.5,
        ge=0.1,
        le=4,
        description="Sum of speech probabilities, older ones fading, at which the agent ducks.",
    )
    yield_ms: int = Field(
        default=700, ge=100, le=5000, description="Speech of this length interrupts."
    )
    repeat_share: float = Field(
        default=0.35,
        ge=0.1,
        le=1,
        description="So much of that is enough from somebody who tries again, all tries together.",
    )
    memory_ms: int = Field(
        default=1000, ge=300, le=5000, description="Who speaks again within this time tries again."
    )
    resume_ms: int = Field(
        default=128,
        ge=64,
        le=1000,
        description="Silence after which a ducked agent goes on; less on long ways to the client.",
    )
    max_duck_ms: int = Field(
        default=2500, ge=200, le=10_000, description="Longest duck that is no interruption."
    )
    user_db: float = Field(
        default=5.5, ge=0, le=30, description="Speech so much weaker than this user's counts fully."
    )
    stranger_db: float = Field(
        default=9.5,
        ge=0,
        le=40,
        description="Speech so much weaker is somebody else's and counts a fifth.",
    )
    sure_ms: int = Field(
        default=600,
        ge=100,
        le=5000,
        description="Speech of this length interrupts inside the guard, and when it began before "
        "the agent's.",
    )
    blip_ms: int = Field(
        default=400,
        ge=0,
        le=5000,
        description="Shorter speech inside the guard is taken for echo and not reported.",
    )


class EchoSettings(Section):
    """Echo cancellation."""

    canceller: Literal["aec3", "off"] = Field(
        default="aec3", description="`off` relies on the client's own canceller."
    )


class PlayoutSettings(Section):
    """The agent's sound on its way out."""

    max_queued_s: float = Field(
        default=30.0, ge=1, le=600, description="Speech that may wait to be played, for each call."
    )


class LogSettings(Section):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least serious kind of line that is written."
    )


class Config(Section):
    """All sections. `Config()` is the default of everything."""

    server: ServerSettings = ServerSettings()
    auth: AuthSection = AuthSection()
    engine: EngineChoice = EngineChoice()
    model: ModelSection = ModelSection()
    vocoder: VocoderSection = VocoderSection()
    voices: VoicesSection = VoicesSection()
    calls: CallSettings = CallSettings()
    rtc: RtcSettings = RtcSettings()
    session: SessionDefaults = SessionDefaults()
    turns: TurnDefaults = TurnDefaults()
    barge_in: BargeInSettings = BargeInSettings()
    echo: EchoSettings = EchoSettings()
    playout: PlayoutSettings = PlayoutSettings()
    chat: ChatSettings = ChatSettings()
    tools: ToolSettings = ToolSettings()
    logging: LogSettings = LogSettings()

    def session_settings(self, model: str) -> SessionSettings:
        """What a call to `model` starts with."""
        turns = self.turns
        detection = TurnDetection(
            kind=turns.kind,
            threshold=turns.threshold,
            prefix_padding_ms=turns.prefix_padding_ms,
            silence_duration_ms=turns.silence_duration_ms,
        )
        defaults = self.session.model_dump(mode="python", exclude={"transcription"})
        return SessionSettings(
            model=model,
            turn_detection=detection,
            tool_channel=self.tools.channel,
            **defaults,
        )
