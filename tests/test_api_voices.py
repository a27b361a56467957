"""`/v1/audio/voices` with a real server, real files and the real `openai` client."""

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from agent.api import replies
from agent.api.auth import Guard
from agent.api.key_ring import KeyRing
from agent.api.voices import UPLOADS, VOICES, Uploads, add_to, open_voices
from agent.config import load_config
from agent.engines import VoiceSettings
from agent.errors import RequestError
from agent.realtime.settings import OPENAI_VOICES
from agent.telemetry import Telemetry
from agent.vocoder.voice_store import VoiceStore
from agent.voices import VocoderFiles, VoiceLimits, Voices, checked_details
from agent.voices_bench import BenchSettings
from agent.voices_workshop import Workshop
from tests.rig.attached import RED, film, picture, tone, wav
from tests.rig.tiny_vocoder import write_token2wav
from tests.rig.voice_bench import CONSENT, Benches, coded, spoken
from tests.rig.voices import AGENT_TEXT, say

PATH = "/v1/audio/voices"
OTHER = "https://other.example"
VOICE_KEYS = {
    "id", "object", "name", "created_at", "built_in", "status", "error", "language", "duration_s",
    "notes",
}  # fmt: skip
REPORT_KEYS = {
    "accepted", "duration_s", "rate_hz", "channels", "level_dbfs", "snr_db", "clipped_share",
    "speech_s", "speech_share", "findings",
}  # fmt: skip


@dataclass(frozen=True)
class VoiceServer:
    url: str
    voices: Voices
    uploads: Uploads
    store: VoiceStore
    http: aiohttp.ClientSession
    client: openai.AsyncOpenAI

    async def post(
        self, path: str = "", data: bytes | None = None, headers: Any = None, **fields: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and document of a form with a recording."""
        form = aiohttp.FormData(fields, default_to_multipart=True)
        if data is not None:
            form.add_field("audio_sample", data, filename="../../etc/passwd")
        async with self.http.post(PATH + path, data=form, headers=headers) as response:
            return response.status, await response.json()

    async def add(self, name: str = "Anna", data: bytes | None = None) -> dict[str, Any]:
        status, document = await self.post(data=data or spoken(), name=name, consent=CONSENT)
        assert status == 200, document
        return document

    async def refusal(self, status: int, *post: Any, **more: Any) -> dict[str, Any]:
        found, document = await self.post(*post, **more)
        assert found == status, document
        assert set(document) == {"error"}
        assert set(document["error"]) == {"message", "type", "code", "param"}
        error: dict[str, Any] = document["error"]
        return error

    async def listed(self) -> dict[str, dict[str, Any]]:
        async with self.http.get(PATH) as response:
            document = await response.json()
        assert response.status == 200 and document["object"] == "list"
        return {voice["id"]: voice for voice in document["data"]}


@asynccontextmanager
async def voice_server(
    folder: Path,
    vocoder: VocoderFiles | None = None,
    limits: VoiceLimits | None = None,
    benches: Benches | None = None,
) -> AsyncIterator[VoiceServer]:
    store, limits = VoiceStore(folder / "voices", folder / "built_in"), limits or VoiceLimits()
    settings = BenchSettings(store.own, store.built_in, limits.of_recordings(), vocoder)
    voices = Voices(store, limits, vocoder, workshop=Workshop(settings, benches or Benches()))
    config = load_config(None, {}, ["server.cors_origins=https://friend.example"])
    guard = Guard(config, KeyRing(), Telemetry())
    app = web.Application(
        middlewares=[replies.cors(guard.origins), replies.errors_as_json, guard.let_in]
    )
    app.on_response_prepare.append(replies.tell_pages(guard.origins))
    add_to(app, voices)
    assert app[VOICES] is voices
    # What a refused client still sends is read for so long.
    runner = web.AppRunner(app, access_log=None, lingering_time=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with (
            aiohttp.ClientSession(url) as http,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
        ):
            yield VoiceServer(url, voices, app[UPLOADS], store, http, client)
    finally:
        await runner.cleanup()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[VoiceServer]:
    async with voice_server(tmp_path) as running:
        yield running


# ---- the four requests --------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left_behind")
async def test_a_voice_from_upload_to_deletion(tmp_path: Path) -> None:
    vocoder = VocoderFiles("token2wav", write_token2wav(tmp_path / "token2wav"))
    async with voice_server(tmp_path, vocoder) as server:
        assert await server.listed() == {}
        status, added = await server.post(
            data=coded("webm", "libopus", 48_000),
            name="Anna",
            consent=CONSENT,
            language="EN",
            unknown="x" * 5000,
        )
        assert status == 200 and set(added) == {*VOICE_KEYS, "report"}
        assert set(added["report"]) == REPORT_KEYS and added["report"]["accepted"] is True
        assert (added["id"], added["object"], added["name"]) == ("anna", "audio.voice", "Anna")
        assert added["language"] == "en" and added["built_in"] is False
        assert added["status"] in ("preparing", "ready") and 4 < added["duration_s"] < 4.6
        while (await server.listed())["anna"]["status"] != "ready":
            await asyncio.sleep(0.01)
        assert set((await server.listed())["anna"]) == VOICE_KEYS
        assert server.voices.ready_ids() == ("anna",)
        recording = server.store.find("anna").recording
        assert stat.S_IMODE(recording.stat().st_mode) == 0o600
        async with server.http.delete(f"{PATH}/anna") as response:
            document = await response.json()
        assert document == {"id": "anna", "object": "audio.voice.deleted", "deleted": True}
        assert await server.listed() == {} and server.voices.ready_ids() == ()


async def test_openai_s_client(server: VoiceServer) -> None:
    added = await server.client.post(
        "/audio/voices",
        cast_to=dict[str, Any],
        body={"name": "Anna", "consent": CONSENT},
        files={"audio_sample": ("anna.wav", spoken(), "audio/x-wav")},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    assert added["id"] == "anna" and added["status"] == "stored"
    listed = await server.client.get("/audio/voices", cast_to=dict[str, Any])
    assert [voice["id"] for voice in listed["data"]] == ["anna"]
    await server.client.delete("/audio/voices/anna", cast_to=dict[str, Any])
    with pytest.raises(openai.NotFoundError) as raised:
        await server.client.delete("/audio/voices/anna", cast_to=dict[str, Any])
    assert raised.value.code == "voice_not_found"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: coded("mp3", "mp3", 44_100), id="mp3"),
        pytest.param(lambda: coded("ogg", "libopus", 48_000), id="ogg"),
        pytest.param(lambda: coded("mp4", "aac", 44_100), id="m4a"),
        pytest.param(lambda: film([RED] * 4, say(AGENT_TEXT[:75], 16_000)), id="film"),
    ],
)
async def test_a_check_tells_and_keeps_nothing(server: VoiceServer, data: Any) -> None:
    status, report = await server.post("/check", data())
    assert status == 200 and set(report) == REPORT_KEYS and report["accepted"] is True
    assert await server.listed() == {} and not list(server.store.own.glob("[a-z]*"))


async def test_a_check_of_what_cannot_be_used_is_an_answer_and_an_upload_an_error(
    server: VoiceServer,
) -> None:
    status, report = await server.post("/check", wav(tone(6)))
    assert status == 200 and report["accepted"] is False
    (finding,) = [each for each in report["findings"] if each["severity"] == "refused"]
    assert finding == {
        "code": "no_speech",
        "severity": "refused",
        "message": "No speech could be found in it.",
    }
    error = await server.refusal(400, data=wav(tone(6)), name="Tone", consent=CONSENT)
    assert (error["code"], error["param"]) == ("recording_refused", "audio_sample")
    assert error["message"] == "The recording cannot be used: No speech could be found in it."
    assert await server.listed() == {}


async def test_the_settings_say_where_and_how_many(tmp_path: Path) -> None:
    overrides = ["max_voices=0", "max_file_bytes=4096", "max_recording_s=5"]
    config = load_config(
        None, {}, [f"voices.folder={tmp_path}", *(f"voices.{each}" for each in overrides)]
    )
    folder = write_token2wav(tmp_path / "token2wav")
    voice = VoiceSettings(name="token2wav", folder=folder, voices=tmp_path)
    for voices, status in (
        (open_voices(config, None), "stored"),
        (open_voices(config, voice), "preparing"),
    ):
        assert voices.limits == VoiceLimits(0, 4096, 5.0, OPENAI_VOICES)
        found = {each.voice.id: each.status for each in await voices.listed()}
        assert set(found.values()) == {status} and {"clara", "mei"} <= set(found)
        with pytest.raises(RequestError, match="no voices may be added"):
            await voices.add(checked_details("Anna", CONSENT), spoken())


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"name": "Anna"}, "consent", "consent is missing"),
        ({"consent": CONSENT}, "name", "name is missing"),
        ({"name": "Anna", "consent": "ok"}, "consent", "in at least 3 words"),
        ({"name": " ", "consent": CONSENT}, "name", "1 to 80"),
        ({"name": "Anna", "consent": "so " * 4000}, "consent", "too long"),
        ({"name": "Anna", "consent": CONSENT, "language": "-"}, "language", "such as en"),
    ],
)
async def test_fields_that_cannot_be_used(
    server: VoiceServer, fields: dict[str, str], param: str, words: str
) -> None:
    error = await server.refusal(400, data=spoken(), **fields)
    assert error["param"] == param and words in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_files_that_cannot_be_used(server: VoiceServer) -> None:
    error = await server.refusal(400, name="Anna", consent=CONSENT)
    assert error["param"] == "audio_sample" and "is missing" in error["message"]
    for data, words in ((b"hello", "this is text"), (picture(RED), "this is a picture")):
        error = await server.refusal(400, "/check", data)
        assert error["param"] == "audio_sample" and words in error["message"]
        assert error["code"] == "unsupported_media"


async def test_sizes_and_numbers(tmp_path: Path) -> None:
    limits = VoiceLimits(voices=1, file_bytes=len(spoken()), recording_s=10)
    async with voice_server(tmp_path, limits=limits) as server:
        for size in (limits.file_bytes + 1, limits.file_bytes + 100_000):
            error = await server.refusal(413, "/check", bytes(size))
            assert "voices.max_file_bytes" in error["message"]
        assert (await server.add())["id"] == "anna"
        error = await server.refusal(400, data=spoken(), name="Ben", consent=CONSENT)
        assert error["code"] == "too_many_voices"


async def test_a_body_that_states_no_length_is_cut_off(tmp_path: Path) -> None:
    async with voice_server(tmp_path, limits=VoiceLimits(file_bytes=100_000)) as server:
        sent = 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal sent
            yield b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\n'
            for _ in range(1000):
                sent += 65_536
                yield bytes(65_536)

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        try:
            async with server.http.post(PATH, data=pieces(), headers=headers) as response:
                assert response.status == 413
        except aiohttp.ClientError:
            pass  # The connection may break before the answer is read.
        assert sent < 20_000_000


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=x", b"no parts at all", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data", 400),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y--\r\n--x--\r\n",
            400,
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 20 + b"--x--\r\n",
            400,
        ),
    ],
)
async def test_bodies_that_are_no_form(
    server: VoiceServer, kind: str, body: bytes, status: int
) -> None:
    headers = {"Content-Type": kind}
    async with server.http.post(PATH, data=body, headers=headers) as response:
        document = await response.json()
    assert response.status == status and document["error"]["message"], document


async def test_a_sender_who_stalls_is_not_waited_for(server: VoiceServer) -> None:
    server.uploads.stalled_s = 0.05
    never = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="audio_sample"\r\n\r\nRIFF'
        await never.wait()

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    async with server.http.post(PATH, data=pieces(), headers=headers) as response:
        document = await response.json()
    assert response.status == 408 and document["error"]["code"] == "request_timeout"


async def test_not_too_many_come_in_at_a_time(server: VoiceServer) -> None:
    with (
        server.uploads.admitted(),
        server.uploads.admitted(),
        server.uploads.admitted(),
        server.uploads.admitted(),
    ):
        error = await server.refusal(503, "/check", spoken())
        assert error["code"] == "no_capacity"
    assert (await server.post("/check", spoken()))[0] == 200


async def test_a_voice_of_the_program_stays(server: VoiceServer) -> None:
    server.store.built_in.mkdir()
    (server.store.built_in / "clara.wav").write_bytes(spoken())
    (server.store.built_in / "clara.json").write_text('{"name": "Clara", "language": "en"}')
    assert (await server.listed())["clara"]["built_in"] is True
    async with server.http.delete(f"{PATH}/clara") as response:
        document = await response.json()
    assert response.status == 400 and document["error"]["code"] == "voice_is_built_in"


# ---- pages --------------------------------------------------------------------------------------


async def test_pages_of_other_sites_cannot_send_recordings_unless_they_may(
    server: VoiceServer,
) -> None:
    """A form crosses sites without being asked for; what a browser cannot read it still sends."""
    ours = server.url
    for headers, status in (
        ({"Origin": OTHER, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": OTHER}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ours}, 200),
        ({"Origin": "https://behind.proxy", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://friend.example", "Sec-Fetch-Site": "cross-site"}, 200),
    ):
        found, document = await server.post("/check", spoken(), headers)
        assert found == status, (headers, document)


async def test_pages_that_may_can_read_the_answers(server: VoiceServer) -> None:
    headers = {"Origin": "https://friend.example", "Access-Control-Request-Method": "DELETE"}
    async with server.http.get(PATH, headers=headers) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "https://friend.example"
    async with server.http.options(f"{PATH}/anna", headers=headers) as response:
        assert "DELETE" in response.headers["Access-Control-Allow-Methods"]
