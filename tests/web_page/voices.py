"""The voices of the scripted server: what it lists, and what it was sent."""

import asyncio
import io
import wave
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

DRIVEN_MICROPHONE = """(() => {
  const Node = window.AudioWorkletNode;
  window.AudioWorkletNode = class extends Node {
    constructor(...given) {
      super(...given);
      let take = () => undefined;
      Object.defineProperty(this.port, 'onmessage', { set: (taker) => { take = taker; } });
      window.hear = (seconds) => {
        for (let left = seconds * this.context.sampleRate; left > 0; left -= 2048)
          take({ data: new Float32Array(Math.min(left, 2048)).fill(0.1) });
      };
    }
  };
})();"""
"""A preamble: what is recorded is only what `hear(seconds)` says, and takes no time."""


def voice(name: str, **fields: Any) -> dict[str, Any]:
    """A voice as `GET /v1/audio/voices` tells it; its id is its name in small letters."""
    usual = {"built_in": False, "status": "ready", "error": None, "language": "en", "notes": []}
    made = {"id": name.lower(), "object": "audio.voice", "name": name, "created_at": 1}
    return made | usual | {"duration_s": 6.0} | fields


def built_in(*names: str) -> list[dict[str, Any]]:
    """Voices that cannot be deleted."""
    return [voice(name, built_in=True) for name in names]


def report(*findings: tuple[str, str, str], accepted: bool = True) -> dict[str, Any]:
    """What the server measured, with (code, severity, message) of each finding."""
    figures = {"duration_s": 8.0, "rate_hz": 48_000, "channels": 1, "level_dbfs": -24.0}
    figures |= {"snr_db": 40.0, "clipped_share": 0.0, "speech_s": 7.0, "speech_share": 0.9}
    said = [dict(zip(("code", "severity", "message"), each, strict=True)) for each in findings]
    return {"accepted": accepted, **figures, "findings": said}


def tone_wav(seconds: float = 0.5) -> bytes:
    """Something to play."""
    data = io.BytesIO()
    with wave.open(data, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8_000)
        sound.writeframes(b"\x00\x10\x00\xf0" * int(4_000 * seconds))
    return data.getvalue()


def _open() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass(slots=True)
class ScriptedVoices:
    """`listed` is what there is; a test changes it. `refuse` is answered instead.

    Uploads wait for `gate`.
    """

    listed: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=report)
    refuse: tuple[int, str] | None = None
    """Status and message."""
    refusal_code: str | None = None
    status: str = "ready"
    """Of a voice that is added."""
    asked: int = 0
    """How often the list was."""
    checked: list[dict[str, Any]] = field(default_factory=list)
    added: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    spoken: list[dict[str, Any]] = field(default_factory=list)
    sample: bytes = field(default_factory=tone_wav)
    gate: asyncio.Event = field(default_factory=_open)

    async def answer(self, request: web.Request) -> web.Response:
        """Whatever is under `/v1/audio/`."""
        match request.method, request.path.removeprefix("/v1/audio/").split("/"):
            case "GET", ["voices"]:
                return await self._list()
            case "POST", ["voices"]:
                return await self._add(request)
            case "POST", ["voices", "check"]:
                return await self._check(request)
            case "DELETE", ["voices", name]:
                return await self._delete(name)
            case "POST", ["speech"]:
                return await self._speak(request)
        raise web.HTTPNotFound

    async def _list(self) -> web.Response:
        self.asked += 1
        return web.json_response({"object": "list", "data": self.listed})

    async def _check(self, request: web.Request) -> web.Response:
        self.checked.append(await _form(request))
        await self.gate.wait()
        return (
            _refusal(*self.refuse, self.refusal_code)
            if self.refuse
            else web.json_response(self.report)
        )

    async def _add(self, request: web.Request) -> web.Response:
        self.added.append(await _form(request))
        await self.gate.wait()
        if self.refuse:
            return _refusal(*self.refuse, self.refusal_code)
        made = voice(self.added[-1]["name"], status=self.status)
        self.listed = [*self.listed, made]
        return web.json_response(made | {"report": self.report})

    async def _delete(self, name: str) -> web.Response:
        self.deleted.append(name)
        self.listed = [each for each in self.listed if each["id"] != name]
        return web.json_response({"id": name, "object": "audio.voice.deleted", "deleted": True})

    async def _speak(self, request: web.Request) -> web.Response:
        self.spoken.append(await request.json())
        if self.refuse:
            return _refusal(*self.refuse, self.refusal_code)
        return web.Response(body=self.sample, content_type="audio/wav")


def _refusal(status: int, message: str, code: str | None = None) -> web.Response:
    """OpenAI's error object."""
    return web.json_response({"error": {"message": message, "code": code}}, status=status)


async def _form(request: web.Request) -> dict[str, Any]:
    """Its fields; a file as (name, bytes)."""
    fields: dict[str, Any] = {}
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            fields[name] = (value.filename, value.file.read())
        else:
            fields[name] = value
    return fields
