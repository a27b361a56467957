"""vLLM-Omni's duplex API beside OpenAI's: what a client is told that connects by `?duplex=1`.

Each decision of the model to listen on (`response.listen`) or to speak (`response.speak`), what
became of it when somebody talked over the agent (`overlap.decision`), and in the session
`capabilities`. A call is not kept when its socket is gone, so nothing bears a `server_event_seq`.
What such clients send is read by `omni_requests`.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from agent.errors import RequestError
from agent.media.wire_sound import PCM_RATE_HZ
from agent.realtime.events import Event, server_event
from agent.realtime.fields import Fields, quoted
from agent.types import (
    MIC_RATE_HZ,
    UNIT_SAMPLES,
    Abilities,
    SessionSettings,
    SoundFormat,
)

Overlap: TypeAlias = Literal["ducked", "resumed", "yielded", "kept"]
"""What the agent did: held its breath, went on after that, fell silent, spoke on throughout."""

SERVER_EVENTS = frozenset(
    {"response.listen", "response.speak", "overlap.decision"}
    | {"session.heartbeat_ack", "session.closed", "session.expired"}
)
"""For those alone who asked for that API or used it: some clients end at what they do not know."""
_CLIENT_EVENTS = frozenset(
    {"session.heartbeat", "session.event_ack", "session.close", "session.resume"}
    | {"input.commit", "input.cancel", "barge_in"}
)
_DECISIONS: dict[Overlap, tuple[str, str]] = {
    "ducked": ("listen", "overlap_began"),
    "resumed": ("listen", "short_overlap"),
    "yielded": ("barge_in", "overlap_speech"),
    "kept": ("listen", "interruption_off"),
}
"""Each as `action`, in their words, and `reason`."""
_SWITCHED_ON = ("1", "true", "on")
_RATES_HZ = (PCM_RATE_HZ, MIC_RATE_HZ)
"""Of the user's PCM."""


def asks_for_omni(duplex: str) -> bool:
    """Whether the value of the query's `duplex` asks for that API."""
    return duplex.lower() in _SWITCHED_ON


def uses_omni(document: Mapping[str, object]) -> bool:
    """Whether the client that sent this knows that API."""
    kind = document.get("type")
    return isinstance(kind, str) and kind in _CLIENT_EVENTS


class Omni:
    """What one call has to do with that API."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.is_asked = False
        """Whether the client connected by `?duplex=1`."""
        self.is_known = False
        """Whether it understands `SERVER_EVENTS`: it asked for them, or has used that API."""
        self.rate_hz = PCM_RATE_HZ
        """Of the user's sound where it is PCM, unless an append names another."""
        self._epoch = 0

    def ask(self) -> None:
        """The client connected by `?duplex=1`."""
        self.is_asked = self.is_known = True

    # ---- the session --------------------------------------------------------------------------

    def read(self, document: object) -> tuple[object, int]:
        """The session object without what has another meaning there; and the rate of its sound.

        No turn detection means that the model decides, as it does here with it.
        """
        if not self.is_asked or not isinstance(document, Mapping):
            return document, self.rate_hz
        told = dict(document)
        if "turn_detection" in told and told["turn_detection"] is None:
            del told["turn_detection"]
        heard = _inner(told, "audio", "input")
        for named in (told.get("sample_rate_hz"), heard.get("sample_rate_hz")):
            for rate_hz in _RATES_HZ:
                if named == rate_hz:
                    return _without_rate(told), rate_hz
        return told, self.rate_hz

    def coding(self, append: Fields, session: SoundFormat) -> SoundFormat:
        """How the sound of an append is coded, in a session of that format; `RequestError`."""
        if session != "audio/pcm":
            return session
        rate_hz = append.number("sample_rate_hz", self.rate_hz, least=0, most=1e9)
        if rate_hz not in _RATES_HZ:
            raise RequestError(
                f"PCM of {quoted(rate_hz)} Hz is not understood; use 24000 or 16000.",
                param="sample_rate_hz",
                code="invalid_value",
            )
        return "audio/pcm;rate=16000" if rate_hz == MIC_RATE_HZ else session

    def told(self, abilities: Abilities) -> dict[str, object]:
        """What the session object holds besides."""
        if not self.is_asked:
            return {}
        return {"sample_rate_hz": self.rate_hz, "capabilities": _capabilities(abilities)}

    # ---- what is told -------------------------------------------------------------------------

    def beside(self, events: Iterable[Event]) -> list[Event]:
        """`events`, and `response.speak` behind each spoken part that begins.

        What ends a response early or drops what was heard begins an epoch.
        """
        told: list[Event] = []
        for event in events:
            told.append(event)
            match event:
                case {"type": "response.content_part.added", "part": {"type": "audio"}}:
                    told.append(self._speak(event))
                case {"type": "response.done", "response": {"status": "cancelled"}}:
                    self._epoch += 1
                case {"type": "input_audio_buffer.cleared"}:
                    self._epoch += 1
        return told

    def listened(self, unit: int) -> Event:
        """`response.listen`: the model took in that unit, and goes on listening."""
        metadata = {"reason": "model_listen", "unit": unit}
        listening = {"object": "realtime.response", "status": "listening", "metadata": metadata}
        return self._event("response.listen", response=listening)

    def overlapped(
        self, overlap: Overlap, settings: SessionSettings, metadata: Mapping[str, object]
    ) -> Event:
        """`overlap.decision`: somebody talks over the agent, and what it does."""
        action, reason = _DECISIONS[overlap]
        decided = {"policy": _policy(settings), "action": action, "reason": reason}
        return self._event("overlap.decision", **decided, metadata=dict(metadata))

    def closed(self) -> Event:
        """`session.closed`: as the client asked."""
        why = {"type": "session.closed", "reason": "client_close"}
        return server_event(
            "session.closed", session_id=self.session_id, reason=why["reason"], event=why
        )

    def expired(self) -> Event:
        """`session.expired`: the call has lasted for as long as one may."""
        reason = "max_duration"
        return server_event("session.expired", session_id=self.session_id, reason=reason)

    def _speak(self, part: Event) -> Event:
        where = ("response_id", "item_id", "output_index", "content_index")
        metadata = {"session_id": self.session_id, "epoch": self._epoch, "model_speak": True}
        return server_event(
            "response.speak", **{name: part[name] for name in where}, metadata=metadata
        )

    def _event(self, kind: str, **fields: object) -> Event:
        return server_event(kind, session_id=self.session_id, epoch=self._epoch, **fields)


def _capabilities(abilities: Abilities) -> dict[str, object]:
    """By what its clients tell servers apart; they are told nothing that does not hold."""
    level = {"implementation_level": "model_native_duplex"} if abilities.duplex else {}
    return {
        **level,
        "chunk_period_ms": UNIT_SAMPLES * 1000 // MIC_RATE_HZ,
        "input_modes": ["append_audio_chunk"],
        "supports_input_append": True,
        "supports_barge_in": True,
        "supports_audio_truncate": True,
        "supports_multi_session": True,
        "supports_session_lease": False,
        "supports_session_resume": False,
    }


def _policy(settings: SessionSettings) -> str:
    detection = settings.turn_detection
    yields = detection is not None and detection.interrupt_response
    return "barge_in_on_speech" if yields else "listen_only"


def _inner(document: object, *path: str) -> Mapping[str, object]:
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def _without_rate(told: dict[str, object]) -> dict[str, object]:
    """The session less the rates of the user's PCM; the objects on the way copied."""
    heard = _inner(told, "audio", "input")
    if heard.get("sample_rate_hz") in _RATES_HZ:
        told = told | {"audio": {**_inner(told, "audio"), "input": _less_rate(heard)}}
    return _less_rate(told) if told.get("sample_rate_hz") in _RATES_HZ else told


def _less_rate(document: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in document.items() if name != "sample_rate_hz"}
