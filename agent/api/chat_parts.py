"""From what a client attached to what an engine is given: fetch, decode base64, read the media."""

import asyncio
import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import unquote_to_bytes

from agent.api.chat_request import Asked, AskedMessage, Wanted
from agent.api.fetch import Fetcher, SharedBytes
from agent.chat_types import ChatMessage, ChatPart, ChatRequest, ChatSound, ChatVideo
from agent.errors import RequestError
from agent.media.files import MediaLimits, ReadPart, kind_of, read_media
from agent.model_settings import ChatSettings
from agent.types import MIC_RATE_HZ

_MOST_FETCHES = 4
_MOST_DECODERS = 2
_PIECE_CHARACTERS = 1 << 18
"""Base64 is decoded in pieces: all at once, no other thread could run for as long as it takes."""
_LINE_CHARACTERS = 1000
_LOW_PIXELS = 448 * 448
"""What the model sees of a picture in one slice."""


class Attachments:
    """Turns requests as they came into requests for the engine, within the limits of `settings`."""

    def __init__(self, settings: ChatSettings, fetcher: Fetcher) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._fetches = asyncio.Semaphore(_MOST_FETCHES)
        self._decoders = asyncio.Semaphore(_MOST_DECODERS)

    async def resolve(self, asked: Asked) -> ChatRequest:
        """`asked` with its media; `RequestError` naming the part that cannot be had."""
        wanted = asked.wanted
        files = await self._fetch_all(wanted)
        pictures = [each for each in wanted if each.kind == "picture"]
        all_low = bool(pictures) and all(each.low for each in pictures)
        parts: dict[str, ReadPart] = {}
        for each in wanted:
            # Freed as soon as it is read: the files may be large, and so may what they hold.
            parts[each.param] = await self._read(each, files.pop(each.param, None), all_low)
            self._check_lengths(each, list(parts.values()))
        messages = tuple(_filled(message, parts) for message in asked.messages)
        slices = asked.order.max_slices
        if slices is None and all_low:
            slices = 1
        return replace(asked.order, messages=messages, max_slices=slices)

    async def _fetch_all(self, wanted: Sequence[Wanted]) -> dict[str, bytes]:
        """The files behind http URLs, by param; no more than a request may hold, all together."""
        remote = [each for each in wanted if each.url and not _is_data(each.url)]
        shared = SharedBytes(self._settings.max_body_bytes)
        tasks = [asyncio.ensure_future(self._fetch(each, shared)) for each in remote]
        try:
            files = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return {each.param: file for each, file in zip(remote, files, strict=True)}

    async def _fetch(self, wanted: Wanted, shared: SharedBytes) -> bytes:
        async with self._fetches:
            try:
                return await self._fetcher.fetch(wanted.url, shared)
            except RequestError as error:
                raise _at(wanted, error) from error

    async def _read(self, wanted: Wanted, file: bytes | None, all_low: bool) -> ReadPart:
        """Off the event loop; the place is held until the thread is done, whoever has given up."""
        await self._decoders.acquire()
        work = asyncio.ensure_future(
            asyncio.to_thread(_decoded, wanted, file, self._limits(wanted, all_low))
        )
        work.add_done_callback(self._free_decoder)
        return await asyncio.shield(work)

    def _free_decoder(self, work: "asyncio.Future[ReadPart]") -> None:
        self._decoders.release()
        if not work.cancelled():
            # Nobody else may be there to hear of it.
            work.exception()

    def _limits(self, wanted: Wanted, all_low: bool) -> MediaLimits:
        settings = self._settings
        limits = MediaLimits(
            file_bytes=settings.max_item_bytes,
            picture_pixels=settings.max_picture_pixels,
            sound_s=settings.max_sound_s,
            video_s=settings.max_video_s,
        )
        # One slice for some pictures and several for others is more than an engine can be told.
        return replace(limits, kept_pixels=_LOW_PIXELS) if wanted.low and not all_low else limits

    def _check_lengths(self, newest: Wanted, parts: Sequence[ReadPart]) -> None:
        """A file alone was found short enough; all of them together may not be."""
        sound_s = sum(len(p.samples) for p in parts if isinstance(p, ChatSound)) / MIC_RATE_HZ
        video_s = sum(len(p.pictures) for p in parts if isinstance(p, ChatVideo))
        for what, found_s, most_s in (
            ("recordings", sound_s, self._settings.max_sound_s),
            ("videos", video_s, math.ceil(self._settings.max_video_s)),
        ):
            if found_s > most_s:
                raise RequestError(
                    f"{newest.param}: up to here all {what} together last {found_s:.1f} s; at "
                    f"most {most_s:g} s are allowed",
                    param=newest.param,
                    code="media_too_long",
                )


def _filled(message: AskedMessage, parts: dict[str, ReadPart]) -> ChatMessage:
    content: list[ChatPart] = [
        parts[part.param] if isinstance(part, Wanted) else part for part in message.content
    ]
    return ChatMessage(message.role, tuple(content), message.calls)


def _decoded(wanted: Wanted, file: bytes | None, limits: MediaLimits) -> ReadPart:
    """In a thread: the media of `wanted`, whose file was fetched unless it came along."""
    try:
        data = file if file is not None else _carried(wanted, limits.file_bytes)
        part = read_media(data, "", limits)
    except RequestError as error:
        raise _at(wanted, error) from error
    if kind_of(part) != wanted.kind:
        raise RequestError(
            f"{wanted.param}: this is a {kind_of(part)}, not a {wanted.kind}",
            param=wanted.param,
            code="invalid_media",
        )
    return part


def _carried(wanted: Wanted, most_bytes: int) -> bytes:
    """The bytes that the request itself holds."""
    if not wanted.url:
        return _from_base64(wanted.coded, 0, most_bytes)
    start = wanted.url.find(",") + 1
    if not start:
        raise RequestError("the data URL holds no comma before its data", code="invalid_url")
    if not wanted.url[:start].lower().endswith(";base64,"):
        if len(wanted.url) > most_bytes:
            raise _too_large(most_bytes)
        return unquote_to_bytes(wanted.url[start:])
    return _from_base64(wanted.url, start, most_bytes)


def _from_base64(text: str, start: int, most_bytes: int) -> bytes:
    if (len(text) - start) * 3 // 4 > most_bytes + 3:
        raise _too_large(most_bytes)
    if any(character.isspace() for character in text[start : start + _LINE_CHARACTERS]):
        # Some encoders break their output into lines.
        text, start = "".join(text[start:].split()), 0
    data = bytearray()
    try:
        for at in range(start, len(text), _PIECE_CHARACTERS):
            piece = text[at : at + _PIECE_CHARACTERS]
            padding = "=" * (-len(piece) % 4)
            data += base64.b64decode(piece + padding, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"the data is not base64: {error}", code="invalid_base64") from error
    return bytes(data)


def _too_large(most_bytes: int) -> RequestError:
    return RequestError(
        f"the file is larger than the {most_bytes:,} bytes allowed", code="file_too_large"
    )


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _at(wanted: Wanted, error: RequestError) -> RequestError:
    return RequestError(f"{wanted.param}: {error}", param=wanted.param, code=error.code)
