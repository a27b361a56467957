"""`/v1/audio/voices`: reference voices listed, checked, added and removed.

Shaped like OpenAI's endpoint, but that `consent` is a statement and not an id.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager

from aiohttp import web
from aiohttp.typedefs import Handler

from agent.api.caller import caller_of
from agent.api.chat import while_connected
from agent.api.voice_form import FormLimits, VoiceForm, read_form
from agent.config import Config
from agent.engines import VoiceSettings
from agent.errors import CapacityError
from agent.model_hub.voice import voices_folder
from agent.realtime.settings import OPENAI_VOICES
from agent.resources import assets_folder
from agent.vocoder.voice_store import VoiceStore
from agent.voices import (
    Added,
    VocoderFiles,
    VoiceLimits,
    Voices,
    VoiceStorageError,
    VoiceUnwanted,
    checked_details,
)

_MAX_UPLOADS = 4
"""Each is kept in memory while it comes in."""
_UPLOAD_S = 300.0
"""The largest recording over a line of half a megabit a second."""
_STALLED_S = 20.0
_RETRY_AFTER_S = 5.0
_LEAST_BYTES_S = 8192.0
_GONE = 499
log = logging.getLogger(__name__)


class Uploads:
    """What is coming in."""

    def __init__(self) -> None:
        self.upload_s = _UPLOAD_S
        self.stalled_s = _STALLED_S
        self.least_bytes_s = _LEAST_BYTES_S
        self.inside = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Held while a recording comes in and is looked at. `CapacityError`."""
        if self.inside >= _MAX_UPLOADS:
            raise CapacityError(
                "too many recordings are coming in; try again later", retry_after_s=_RETRY_AFTER_S
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


VOICES = web.AppKey("voices", Voices)
UPLOADS = web.AppKey("voice_uploads", Uploads)


def open_voices(config: Config, voice: VoiceSettings | None) -> Voices:
    """The voices that `config` names, for the vocoder of `voice`; None: they are only stored."""
    store = VoiceStore(voices_folder(config), assets_folder() / "ref_audio")
    vocoder = VocoderFiles(voice.name, voice.folder) if voice else None
    return Voices(store, VoiceLimits.of(config.voices, OPENAI_VOICES), vocoder)


def add_to(app: web.Application, voices: Voices) -> None:
    """Add this file's endpoints; `voices` is started and closed with the application."""
    app[VOICES], app[UPLOADS] = voices, Uploads()
    app.cleanup_ctx.append(_run)
    app.router.add_get("/v1/audio/voices", list_voices)
    app.router.add_post("/v1/audio/voices", _discreet(add_voice))
    app.router.add_post("/v1/audio/voices/check", _discreet(check_recording))
    app.router.add_delete("/v1/audio/voices/{id}", _discreet(remove_voice))


async def _run(app: web.Application) -> AsyncIterator[None]:
    await app[VOICES].start()
    yield
    await app[VOICES].close()


async def list_voices(request: web.Request) -> web.Response:
    """All voices that the caller may use, those that are not ready yet included."""
    found, theirs = await request.app[VOICES].listed(), caller_of(request).voices
    data = [each.as_json() for each in found if not theirs or each.voice.id in theirs]
    return web.json_response({"object": "list", "data": data})


async def add_voice(request: web.Request) -> web.Response:
    """The new voice, and beside it what was found out about its recording.

    It is not kept when whoever sent it has left by then.
    """
    with ExitStack() as place:
        form = await _read(request, place)
        name, consent = form.text("name"), form.text("consent")
        details = checked_details(name, consent, form.texts.get("language", ""))
        added: Added = await request.app[VOICES].add(
            details, form.recording(), lambda: _is_there(request)
        )
    return web.json_response({**added.listed.as_json(), "report": added.examined.report})


async def check_recording(request: web.Request) -> web.StreamResponse:
    """What would be said of a recording."""
    return await while_connected(request, _check(request))


async def _check(request: web.Request) -> web.Response:
    with ExitStack() as place:
        form = await _read(request, place)
        examined = await request.app[VOICES].check(form.recording())
    return web.json_response(examined.report)


async def remove_voice(request: web.Request) -> web.Response:
    """That a voice is gone."""
    voice_id = request.match_info["id"]
    await request.app[VOICES].remove(voice_id)
    body = {"id": voice_id, "object": "audio.voice.deleted", "deleted": True}
    return web.json_response(body)


def _discreet(handler: Handler) -> Handler:
    """Whoever left is no error; where voices lie is for the log alone."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (ConnectionError, VoiceUnwanted):
            return web.Response(status=_GONE)
        except VoiceStorageError as error:
            log.error("%s", error)
            raise VoiceStorageError(
                "the server cannot change its voices now; its log says why"
            ) from error

    return answer


# ---- who sends --------------------------------------------------------------------------------


def _is_there(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


async def _read(request: web.Request, place: ExitStack) -> VoiceForm:
    """The form; while it is worked on, `place` is held."""
    uploads = request.app[UPLOADS]
    limits = FormLimits(
        request.app[VOICES].limits.file_bytes,
        uploads.upload_s,
        uploads.stalled_s,
        uploads.least_bytes_s,
    )
    return await read_form(request, limits, place, uploads.admitted)
