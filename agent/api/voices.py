"""`/v1/audio/voices`: reference voices listed, checked, added and removed.

Shaped like OpenAI's endpoint, but that `consent` is a statement and not an id.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from agent.api.chat import LargeBody
from agent.api.realtime import SlowBody, WrongContentType
from agent.config import Config
from agent.engines import VoiceSettings
from agent.errors import CapacityError, RequestError
from agent.model_hub.voice import voices_folder
from agent.resources import assets_folder
from agent.vocoder.voice_store import VoiceStore
from agent.voices import Added, VocoderFiles, VoiceLimits, Voices, checked_details

_MAX_UPLOADS = 4
"""Each is kept in memory while it comes in."""
_UPLOAD_S = 300.0
"""The largest recording over a line of half a megabit a second."""
_STALLED_S = 20.0
_RETRY_AFTER_S = 5.0
_MAX_PARTS = 16
_MAX_TEXT_BYTES = 8192
_OVERHEAD_BYTES = 65_536
"""Of a body beyond its recording: the other fields, and what parts them."""
_SAMPLE = "audio_sample"
_TEXTS = ("name", "consent", "language")


class ForeignPage(RequestError):
    """A page of another site sends this; browsers ask nobody before they send a form."""

    status = 403
    code = "foreign_page"


@dataclass(slots=True)
class _Form:
    """The parts of a body that mean something."""

    texts: dict[str, str] = field(default_factory=dict)
    sample: bytes | None = None

    def recording(self) -> bytes:
        """The file; RequestError when there is none."""
        if self.sample is None:
            raise RequestError(
                f"{_SAMPLE} is missing: the recording, as a file",
                param=_SAMPLE,
                code="missing_required_parameter",
            )
        return self.sample

    def text(self, name: str) -> str:
        """A field that must be there."""
        if name not in self.texts:
            raise RequestError(f"{name} is missing", param=name, code="missing_required_parameter")
        return self.texts[name]


class Uploads:
    """What is coming in."""

    def __init__(self, origins: tuple[str, ...] = ()) -> None:
        self.origins = origins
        self.upload_s = _UPLOAD_S
        self.stalled_s = _STALLED_S
        self._inside = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Held while a recording comes in and is looked at. `CapacityError`."""
        if self._inside >= _MAX_UPLOADS:
            raise CapacityError(
                "too many recordings are coming in; try again later", retry_after_s=_RETRY_AFTER_S
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


VOICES = web.AppKey("voices", Voices)
UPLOADS = web.AppKey("voice_uploads", Uploads)


def open_voices(config: Config, voice: VoiceSettings | None) -> Voices:
    """The voices that `config` names, for the vocoder of `voice`; None: they are only stored."""
    store = VoiceStore(voices_folder(config), assets_folder() / "ref_audio")
    vocoder = VocoderFiles(voice.name, voice.folder) if voice else None
    return Voices(store, VoiceLimits.of(config.voices), vocoder)


def add_to(app: web.Application, voices: Voices, origins: tuple[str, ...] = ()) -> None:
    """Add this file's endpoints; `voices` is started and closed with the application.

    `origins` are those whose pages may send forms here besides our own ("*": any).
    """
    app[VOICES], app[UPLOADS] = voices, Uploads(origins)
    app.cleanup_ctx.append(_run)
    app.router.add_get("/v1/audio/voices", list_voices)
    app.router.add_post("/v1/audio/voices", add_voice)
    app.router.add_post("/v1/audio/voices/check", check_recording)
    app.router.add_delete("/v1/audio/voices/{id}", remove_voice)


async def _run(app: web.Application) -> AsyncIterator[None]:
    await app[VOICES].start()
    yield
    await app[VOICES].close()


async def list_voices(request: web.Request) -> web.Response:
    """All voices, those that are not ready yet included."""
    found = await request.app[VOICES].listed()
    return web.json_response({"object": "list", "data": [each.as_json() for each in found]})


async def add_voice(request: web.Request) -> web.Response:
    """The new voice, and beside it what was found out about its recording."""
    voices = request.app[VOICES]
    with request.app[UPLOADS].admitted():
        form = await _read(request)
        name, consent = form.text("name"), form.text("consent")
        details = checked_details(name, consent, form.texts.get("language", ""))
        added: Added = await voices.add(details, form.recording())
    return web.json_response({**added.listed.as_json(), "report": added.examined.report})


async def check_recording(request: web.Request) -> web.Response:
    """What would be said of a recording."""
    with request.app[UPLOADS].admitted():
        form = await _read(request)
        examined = await request.app[VOICES].check(form.recording())
    return web.json_response(examined.report)


async def remove_voice(request: web.Request) -> web.Response:
    """That a voice is gone."""
    voice_id = request.match_info["id"]
    await request.app[VOICES].remove(voice_id)
    body = {"id": voice_id, "object": "audio.voice.deleted", "deleted": True}
    return web.json_response(body)


# ---- the body ---------------------------------------------------------------------------------


async def _read(request: web.Request) -> _Form:
    uploads = request.app[UPLOADS]
    _expect_own_page(request, uploads.origins)
    if request.content_type != "multipart/form-data":
        raise WrongContentType(
            f"Content-Type is {request.content_type!r}; send multipart/form-data",
            param="Content-Type",
        )
    most_bytes = request.app[VOICES].limits.file_bytes
    if (request.content_length or 0) > most_bytes + _OVERHEAD_BYTES:
        raise _too_large(most_bytes)
    try:
        async with asyncio.timeout(uploads.upload_s):
            return await _form(await request.multipart(), most_bytes, uploads.stalled_s)
    except TimeoutError as error:
        raise SlowBody("the recording did not come in time") from error
    except (web.RequestPayloadError, HttpProcessingError, ValueError, RuntimeError) as error:
        raise RequestError(f"the body cannot be read: {error}", code="invalid_body") from error


async def _form(reader: MultipartReader, most_bytes: int, stalled_s: float) -> _Form:
    """All parts, those that nobody knows read and forgotten."""
    form, room = _Form(), most_bytes + _OVERHEAD_BYTES
    for _ in range(_MAX_PARTS):
        async with asyncio.timeout(stalled_s):
            part = await reader.next()
        if part is None:
            return form
        if not isinstance(part, BodyPartReader):
            raise RequestError("the body holds a form within the form", code="invalid_body")
        data = await _part(part, _limit(part.name, most_bytes, room), stalled_s)
        room -= len(data)
        if part.name == _SAMPLE:
            form.sample = data
        elif part.name in _TEXTS:
            form.texts[part.name] = _text(part.name, data)
    raise RequestError(f"the form has more than {_MAX_PARTS} parts", code="invalid_body")


def _limit(name: str | None, most_bytes: int, room: int) -> int:
    if name == _SAMPLE:
        return min(most_bytes, room)
    return min(_MAX_TEXT_BYTES, room) if name in _TEXTS else room


async def _part(part: BodyPartReader, most_bytes: int, stalled_s: float) -> bytes:
    data = bytearray()
    while True:
        async with asyncio.timeout(stalled_s):
            piece = await part.read_chunk(65_536)
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > most_bytes:
            if part.name in _TEXTS:
                raise RequestError(f"{part.name} is too long", param=part.name, code="too_long")
            raise _too_large(most_bytes)


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8", param=name, code="invalid_body") from error


def _too_large(most_bytes: int) -> LargeBody:
    return LargeBody(
        f"the recording is larger than {most_bytes:,} bytes (voices.max_file_bytes)",
        param=_SAMPLE,
    )


def _expect_own_page(request: web.Request, origins: tuple[str, ...]) -> None:
    """A form needs no leave to be sent across sites, unlike JSON: so it is refused here."""
    origin = request.headers.get(hdrs.ORIGIN, "")
    if not origin or "*" in origins or origin in origins:
        return
    site = request.headers.get("Sec-Fetch-Site")
    # Behind a proxy the host may be another one; browsers say so themselves where they can.
    if site == "same-origin" or (site is None and urlsplit(origin).netloc == request.host):
        return
    raise ForeignPage("pages of another site may not send recordings (server.cors_origins)")
