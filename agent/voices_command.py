"""`voice-agent voices`: reference voices listed, checked, added, removed and heard.

All but `say` work without the model. A server that runs on the same folder sees within seconds
what is changed here.
"""

import argparse
import asyncio
import errno
import importlib
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import AgentError, EngineError, RequestError, UnsupportedError, VocoderError

if TYPE_CHECKING:
    from agent.chat_types import SpeechRequest
    from agent.config import Config
    from agent.interfaces import Engine
    from agent.media.speech_file import SpeechFormat
    from agent.vocoder.voice_store import StoredVoice, VoiceStore
    from agent.voices import ListedVoice, VocoderFiles, VoiceLimits
    from agent.voices_recording import Examined

_EXIT_FAILED = 1
_ENDINGS = {"ogg": "opus", "oga": "opus", "raw": "pcm"}
"""Of files, where they are not the format's own name."""
_SECTIONS = ("voices", "vocoder", "model")
"""Whose settings the help names."""
_LANGUAGES = ("en", "zh")
"""Of texts; without, the text says it."""
_NO_VOCODER = (
    "A running server prepares it by itself within seconds; here no vocoder is known that could "
    "(vocoder.folder, or model.source with assets/token2wav in it)."
)
_READERS = (
    "What reads texts is the model with a vocoder: --engine minicpm-o --model PATH_OR_ID "
    "(`voice-agent doctor` says what it lacks)."
)


def add_to(commands: Any, add_settings: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the subcommand to argparse's `commands`; `add_settings` adds --config and --set."""
    voices = commands.add_parser("voices", help="the voices that the agent can speak with")
    voices.sections = _SECTIONS
    verbs = voices.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, does: Callable[[argparse.Namespace], int], words: str) -> Any:
        parser = verbs.add_parser(name, help=words, description=words)
        parser.sections = _SECTIONS
        parser.add_argument("--data", metavar="FOLDER", help="where voices are (voices.folder)")
        parser.add_argument("--model", metavar="PATH_OR_ID", help="the checkpoint (model.source)")
        add_settings(parser)
        parser.set_defaults(command=does)
        return parser

    listing = verb("list", _list, "list all voices")
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    check = verb("check", _check, "say whether a recording can be cloned from; keeps nothing")
    check.add_argument("file", type=Path, metavar="FILE", help="a recording of any common format")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    _add_add(verb("add", _add, "add a voice from a recording of 3 to 15 s of speech"))
    remove = verb("remove", _remove, "delete a voice and all that was made of it")
    remove.add_argument("id", metavar="ID", help="the voice's id, or its name")
    _add_say(verb("say", _say, "read a text aloud into a file"))


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording of any common format")
    parser.add_argument("--name", required=True, help="what users see")
    parser.add_argument(
        "--consent",
        required=True,
        metavar="TEXT",
        # The number is the shelf's, whose import would make every --help slow.
        help="what you declare about the speaker's consent, at least 3 words; it is kept with "
        "the voice",
    )
    parser.add_argument("--language", default="", metavar="CODE", help="of the speech, such as zh")


def _add_say(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the voice's id, or its name")
    parser.add_argument("text", metavar="TEXT", help="what it says")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="its ending is the format"
    )
    parser.add_argument("--language", default="", choices=_LANGUAGES, help="of the text")
    parser.add_argument("--seed", type=int, help="for the same sound each time")
    parser.add_argument("--engine", metavar="NAME", help="what speaks (engine.name)")


# ---- verbs ------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    vocoder = _vocoder(config)
    key = vocoder.key() if vocoder else ""
    store = _store(config)
    found = [_listed(store, voice, key) for voice in store.voices()]
    if arguments.json:
        document = {"object": "list", "data": [each.as_json() for each in found]}
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
        return 0
    sys.stdout.write(_table(found))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    examined = _examined(arguments.file, _limits(_config(arguments)))
    if arguments.json:
        sys.stdout.write(json.dumps(examined.report, indent=2) + "\n")
    else:
        verdict = "It can be used." if examined.accepted else "It cannot be used."
        sys.stdout.write(f"{_findings(examined)}{verdict}\n")
    return 0 if examined.accepted else _EXIT_FAILED


def _add(arguments: argparse.Namespace) -> int:
    from agent.voices_shelf import VoiceShelf, checked_details

    config = _config(arguments)
    details = checked_details(arguments.name, arguments.consent, arguments.language)
    limits, store = _limits(config), _store(config)
    # Before anything is kept: wrong settings are to be said now.
    vocoder = _vocoder(config)
    shelf = VoiceShelf(store, limits.voices, limits.reserved)
    shelf.expect_room()
    examined = _examined(arguments.file, limits)
    sys.stdout.write(_findings(examined))
    if not examined.accepted:
        raise RequestError(f"{arguments.file}: cannot be used; nothing was added")
    voice = shelf.put(details, examined)
    sys.stdout.write(f"Added the voice {voice.id} ({voice.name}), {voice.duration_s:.1f} s.\n")
    sys.stdout.flush()
    return _prepare(store, voice, vocoder)


def _prepare(store: "VoiceStore", voice: "StoredVoice", vocoder: "VocoderFiles | None") -> int:
    from agent.vocoder.preparing import FITS, prepare_voices

    if vocoder is None:
        sys.stdout.write(_NO_VOCODER + "\n")
        return 0
    try:
        refused = prepare_voices(store, (voice,), vocoder.folder, FITS[vocoder.name])
    except OSError as error:
        refused = {voice.id: f"its form cannot be kept: {error.strerror}"}
    if refused:
        sys.stderr.write(f"voice-agent: it cannot be spoken with: {refused[voice.id]}\n")
        return _EXIT_FAILED
    sys.stdout.write("It is ready to be spoken with.\n")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from agent.voices_shelf import VoiceShelf

    config = _config(arguments)
    store = _store(config)
    shelf = VoiceShelf(store, _limits(config).voices)
    voice = shelf.remove(_id_of(store, arguments.id))
    sys.stdout.write(f"Removed the voice {voice.id} ({voice.name}).\n")
    return 0


def _say(arguments: argparse.Namespace) -> int:
    from agent.chat_types import SpeechRequest

    config = _config(arguments)
    # All that can be wrong, before the engine is loaded, which may take minutes.
    form = _format(arguments.output)
    _expect_room(arguments.output)
    store = _store(config)
    voice = store.find(_id_of(store, arguments.id))
    if not arguments.text.strip():
        raise RequestError("there is no text to say")
    language = arguments.language or _language(arguments.text)
    request = SpeechRequest(arguments.text, voice.id, language, arguments.seed)
    sound = asyncio.run(spoken(lambda: _start(config), request, form))
    try:
        arguments.output.write_bytes(sound)
    except OSError as error:
        raise EngineError(f"{arguments.output}: cannot be written: {error.strerror}") from error
    sys.stdout.write(f"Wrote {arguments.output} ({len(sound):,} bytes).\n")
    return 0


async def spoken(
    start: Callable[[], Awaitable["Engine"]], request: "SpeechRequest", form: "SpeechFormat"
) -> bytes:
    """The file of a text read aloud by the engine that `start` gives, which is closed in the end.

    As `start` and the engine fail; VocoderError for a voice that did not last to the end.
    """
    from agent.media.speech_file import SpeechFile, settled

    engine = await start()
    try:
        file, sound = SpeechFile(form), bytearray()
        events = engine.chat(request)
        try:
            async for event in events:
                sound += _piece(event, file)
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()
        sound += file.finish()
        return settled(form, sound, file.samples)
    finally:
        await engine.close()


def _piece(event: Any, file: Any) -> bytes:
    """What an event adds to the file."""
    from agent.chat_types import ChatAudio, ChatDone
    from agent.types import Failed

    match event:
        case ChatAudio(samples=samples):
            piece: bytes = file.push(samples)
            return piece
        case Failed(error=error):
            raise error if isinstance(error, AgentError) else EngineError(str(error)) from error
        case ChatDone(is_voiced=False):
            raise VocoderError("the voice failed on the way; nothing was written")
    return b""


async def _start(config: "Config") -> "Engine":
    started = await importlib.import_module("agent.api.loading").start(config)
    engine: Engine = started.engine
    if not engine.abilities.text_to_speech:
        await engine.close()
        raise UnsupportedError(
            f"the {engine.name} engine has no voice that reads texts; it was taken because: "
            f"{started.choice.reason}. {_READERS}"
        )
    return engine


# ---- what they are told -----------------------------------------------------------------------


def _config(arguments: argparse.Namespace) -> "Config":
    from agent.config import load_config

    overrides = list(arguments.set)
    flags = {"engine": "engine.name", "model": "model.source", "data": "voices.folder"}
    for flag, key in flags.items():
        value = getattr(arguments, flag, None)
        if value is not None:
            overrides.append(f"{key}={value}")
    config = load_config(arguments.config, os.environ, overrides)
    level = logging.DEBUG if config.logging.level == "debug" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return config


def _store(config: "Config") -> "VoiceStore":
    from agent.model_hub.voice import voices_folder
    from agent.resources import assets_folder
    from agent.vocoder.voice_store import VoiceStore

    return VoiceStore(voices_folder(config), assets_folder() / "ref_audio")


def _limits(config: "Config") -> "VoiceLimits":
    from agent.realtime.settings import OPENAI_VOICES
    from agent.voices import VoiceLimits

    return VoiceLimits.of(config.voices, OPENAI_VOICES)


def _vocoder(config: "Config") -> "VocoderFiles | None":
    """The one that a server with these settings would have; None where nothing is there yet."""
    from agent.model_hub.sources import locate
    from agent.model_hub.voice import voice_settings
    from agent.voices import VocoderFiles

    source = locate(config.model)
    if not isinstance(source, Path) and not config.vocoder.folder:
        return None
    settings = voice_settings(config, source if isinstance(source, Path) else Path())
    return VocoderFiles(settings.name, settings.folder) if settings else None


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        if path.stat().st_size > most_bytes:
            raise RequestError(f"{path}: is larger than {most_bytes:,} bytes (voices)")
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from error


def _examined(path: Path, limits: "VoiceLimits") -> "Examined":
    """RequestError, which names the file, when there is no sound to judge."""
    from agent.voices_recording import examine

    data = _read(path, limits.file_bytes)
    try:
        return examine(data, limits.of_recordings())
    except RequestError as error:
        raise RequestError(f"{path}: {error}", code=error.code) from error


def _expect_room(path: Path) -> None:
    """RequestError when no file of that path can be written."""
    if path.is_dir():
        raise RequestError(f"{path}: is a folder; name the file in it")
    if not path.parent.is_dir():
        raise RequestError(f"{path}: cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RequestError(f"{path}: cannot be written: {os.strerror(errno.EACCES)}")


def _id_of(store: "VoiceStore", called: str) -> str:
    """The id of the voice of that id, or else of that name; what is neither comes back as it is.

    RequestError when several have the name.
    """
    voices = store.voices()
    if any(voice.id == called for voice in voices):
        return called
    name = " ".join(called.split()).casefold()
    named = [voice.id for voice in voices if voice.name.casefold() == name]
    if len(named) > 1:
        raise RequestError(f"several voices are named {called!r}; use an id: {', '.join(named)}")
    return named[0] if named else called


def _format(path: Path) -> "SpeechFormat":
    from agent.media.speech_file import SPEECH_FORMATS

    ending = path.suffix.removeprefix(".").lower()
    for form in SPEECH_FORMATS:
        if form == _ENDINGS.get(ending, ending):
            return form
    endings = ", ".join((*SPEECH_FORMATS, *_ENDINGS))
    raise RequestError(f"{path}: the file's ending is to be one of {endings}")


def _language(text: str) -> str:
    """Chinese where any of it is: Chinese texts quote English words more often than the reverse."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in text) else "en"


# ---- what they show ---------------------------------------------------------------------------


def _listed(store: "VoiceStore", voice: "StoredVoice", key: str) -> "ListedVoice":
    from agent.voices import ListedVoice

    if key:
        return ListedVoice(voice, "ready" if store.is_prepared(voice.digest, key) else "stored")
    forms = store.prompt_path(voice.digest, "*")
    return ListedVoice(voice, "prepared" if any(forms.parent.glob(forms.name)) else "stored")


def _table(found: "Sequence[ListedVoice]") -> str:
    rows = [("ID", "NAME", "LANGUAGE", "SECONDS", "STATUS", "FROM")]
    for each in found:
        voice = each.voice
        origin = "the program" if voice.built_in else "added"
        seconds = f"{voice.duration_s:.1f}"
        rows.append((voice.id, voice.name, voice.language, seconds, each.status, origin))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def _findings(examined: "Examined") -> str:
    """What was measured, and a line for each thing that is to be said."""
    report = examined.report
    lines = [
        f"{report['duration_s']:.1f} s at {report['rate_hz']:,} Hz, {report['channels']} "
        f"channel(s); {report['speech_s']:.1f} s of speech at {report['level_dbfs']:.0f} dBFS, "
        f"{report['snr_db']:.0f} dB above what is around it"
    ]
    lines += [f"  {each['severity']}: {each['message']}" for each in report["findings"]]
    return "\n".join(lines) + "\n"
