"""`POST /v1/audio/speech`: a text read aloud, in OpenAI's shape, sent while it is made.

Beyond what OpenAI has: `voice` may be left out (the first there is), `language` and `seed` may be
set. `instructions` are taken and change nothing, as with OpenAI's `tts-1`: clients
send them by default. A `speed` other than 1 is refused.

What goes wrong before the first sound has its own status. What goes wrong later breaks the
connection off, so that a cut file cannot be taken for a whole one; a stream of events
(`stream_format: "sse"`) ends with an error object instead, and without `speech.audio.done`.
"""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

from aiohttp import hdrs, web

from agent.api.caller import Caller, caller_of
from agent.api.calls import Services
from agent.api.chat import CHATS, Chats, leaving, read_json, while_connected
from agent.api.chat_replies import (
    QUIET_NOTE,
    STREAM_HEADERS,
    LateReply,
    ended,
    failure,
    with_quiet,
)
from agent.api.chat_request import picked_voice, seed_of, unsupported, whole_text
from agent.chat_types import ChatAudio, ChatDone, ChatEvent, SpeechRequest
from agent.errors import AgentError, EngineError, RequestError, UnsupportedError, VocoderError
from agent.media.speech_file import SPEECH_FORMATS, SpeechFile, SpeechFormat
from agent.realtime.fields import Fields, wrong_type
from agent.types import Abilities, Failed, FloatArray

log = logging.getLogger(__name__)

MOST_CHARACTERS = 4096
_MOST_BODY_BYTES = 262_144
"""Of which the text may need an eighth, even with every letter written as an escape."""
MOST_INSTRUCTIONS = 16_384


class CannotSpeak(UnsupportedError):
    """The engine has no voice for texts."""

    status = 501


@dataclass(frozen=True, slots=True)
class AskedSpeech:
    """A request; `as_events` asks for server-sent events instead of the bare file."""

    order: SpeechRequest
    form: SpeechFormat = "mp3"
    as_events: bool = False


def add_to(app: web.Application, services: Services) -> None:
    """Add this file's endpoint, after that of chats, whose places it shares."""
    if CHATS not in app:
        app[CHATS] = Chats(services)
    app.router.add_post("/v1/audio/speech", speak)


async def speak(request: web.Request) -> web.StreamResponse:
    """The sound, as it comes; it is given up when the client goes away."""
    return await while_connected(request, _speak(request, request.app[CHATS]))


async def _speak(request: web.Request, chats: Chats) -> web.StreamResponse:
    abilities = chats.abilities
    if not abilities.text_to_speech:
        raise CannotSpeak(f"the {chats.engine.name} engine has no voice that reads texts")
    caller = caller_of(request)
    with chats.admitted(caller):
        asked = _theirs(await read_json(request, _MOST_BODY_BYTES), caller, abilities)
        async with chats.place(), leaving(chats.answer(asked.order)) as events:
            stream = _stream(request, asked)
            return await stream.send(events, chats.settings.keep_alive_s)


def _theirs(document: object, caller: Caller, abilities: Abilities) -> AskedSpeech:
    """What is asked, in a voice that `caller` may use. `VoiceForbidden`."""
    asked = parse_speech(document, caller.able(abilities))
    voice = caller.voice(asked.order.voice, abilities)
    return replace(asked, order=replace(asked.order, voice=voice))


# ---- what is asked ----------------------------------------------------------------------------


def parse_speech(document: object, abilities: Abilities) -> AskedSpeech:
    """Read a request's parsed JSON. `RequestError` with the `param` that cannot be served."""
    if not isinstance(document, Mapping):
        raise wrong_type("body", "an object", document)
    fields = Fields(document)
    fields.text("model", "", most=256)
    fields.text("instructions", "", most=MOST_INSTRUCTIONS)
    if fields.number("speed", 1.0, least=0.25, most=4.0) != 1.0:
        raise unsupported("speed", "the voice speaks at its own pace; leave it out or use 1")
    text = _text(fields)
    languages = abilities.languages or ("en",)
    language = fields.choice("language", languages, "en" if "en" in languages else languages[0])
    order = SpeechRequest(text, picked_voice(fields, abilities), language, seed_of(fields))
    form = fields.choice("response_format", SPEECH_FORMATS, "mp3")
    as_events = fields.choice("stream_format", ("audio", "sse"), "audio") == "sse"
    return AskedSpeech(order, form, as_events)


def _text(fields: Fields) -> str:
    text = whole_text(fields.text("input", most=MOST_CHARACTERS), "input")
    if not text.strip():
        raise RequestError("'input' holds nothing to be read.", param="input", code="invalid_value")
    return text


# ---- what is sent -----------------------------------------------------------------------------


def _stream(request: web.Request, asked: AskedSpeech) -> "_SoundStream":
    file = SpeechFile(asked.form)
    if asked.as_events:
        return _EventStream(LateReply(request, STREAM_HEADERS), file)
    headers = {
        hdrs.CONTENT_TYPE: file.content_type,
        hdrs.CACHE_CONTROL: "no-store",
        "X-Accel-Buffering": "no",
    }
    return _SoundStream(LateReply(request, headers), file)


class _SoundStream:
    """The bare file. Encoded in a thread: a second of sound takes longer than a call's frame."""

    def __init__(self, reply: LateReply, file: SpeechFile) -> None:
        self._reply = reply
        self._file = file
        self._samples = 0

    async def send(self, events: AsyncIterator[ChatEvent], quiet_s: float) -> web.StreamResponse:
        """Send the sound; errors before its first byte are raised. ConnectionError."""
        try:
            async for event in with_quiet(events, quiet_s):
                match event:
                    case None:
                        await self._tell_life()
                    case Failed():
                        raise failure(event)
                    case ChatAudio(samples=samples):
                        await self._say(samples)
                    case ChatDone():
                        return await self._end(event)
            raise ended()
        except AgentError as error:
            if not self._reply.has_begun:
                raise
            log.warning("a text was read in part: %s", error)
            await self._break_off(error)
        return self._reply.reply

    async def _say(self, samples: FloatArray) -> None:
        self._samples += len(samples)
        if ready := await asyncio.to_thread(self._file.push, samples):
            await self._write(ready)

    async def _end(self, done: ChatDone) -> web.StreamResponse:
        self._check_whole(done)
        if rest := await asyncio.to_thread(self._file.finish):
            await self._write(rest)
        await self._say_done(done)
        await self._reply.reply.write_eof()
        return self._reply.reply

    def _check_whole(self, done: ChatDone) -> None:
        if not done.is_voiced or not self._samples:
            raise VocoderError("the voice failed before the text was read to its end")
        if done.reason == "length":
            raise EngineError("the text is longer than is read in one go; send less of it")

    async def _write(self, data: bytes) -> None:
        await self._reply.write(data)

    async def _tell_life(self) -> None:
        """Nothing: a file has no room for it."""

    async def _say_done(self, done: ChatDone) -> None:
        """Nothing: the file's end says it."""

    async def _break_off(self, error: AgentError) -> None:
        raise ConnectionAbortedError("the sound ended before the text did") from error


class _EventStream(_SoundStream):
    """The file in base64, in OpenAI's events."""

    async def _write(self, data: bytes) -> None:
        coded = base64.b64encode(data).decode()
        await self._reply.write_event({"type": "speech.audio.delta", "audio": coded})

    async def _tell_life(self) -> None:
        await self._reply.write(QUIET_NOTE.encode())

    async def _say_done(self, done: ChatDone) -> None:
        usage = {
            "input_tokens": done.prompt_tokens,
            "output_tokens": done.speech_tokens,
            "total_tokens": done.prompt_tokens + done.speech_tokens,
        }
        await self._reply.write_event({"type": "speech.audio.done", "usage": usage})

    async def _break_off(self, error: AgentError) -> None:
        await self._reply.write_error(error)
