"""Requests made at random, by the document that the server serves and by damage to real offers.

Nothing may answer 500, or otherwise than the document says; nothing may be left behind. With
VOICE_AGENT_FUZZ_EXAMPLES=200 in the environment it tries that many of each kind, other ones each
time; by itself a few, always the same.
"""

import asyncio
import io
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from agent.api.chat import CHATS
from tests.rig.caller import Caller
from tests.rig.offers import OFFERS
from tests.rig.server import Footprint, Running, running_server, settle
from tests.rig.speaking_engine import SpeakingEngine

EXAMPLES = int(os.environ.get("VOICE_AGENT_FUZZ_EXAMPLES", "0"))
CALLS = "/v1/realtime/calls"
FRAGMENT = "application/trickle-ice-sdpfrag"
JSON = "application/json"
SOCKET = ("/v1/realtime", "get")
"""HTTP requests cannot become a WebSocket."""
CONFORMS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
MEANT = {500, 501, 502, 504}
LIVE = ("get", "patch")
"""What is tried on a call that goes on: what ends calls is tried on those that there are not."""

pytestmark = pytest.mark.filterwarnings(
    # Of its own making, where it damages requests.
    "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning"
)


def tried(examples: int) -> settings:
    """So many of each, unless the environment wants others."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@schemathesis.serializer("application/sdp", FRAGMENT)
def as_text(_: object, value: object) -> bytes:
    """Texts that are no JSON."""
    return str(value).encode("utf-8", "surrogatepass")


@pytest.fixture
async def server(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Running]:
    """One whose chats and texts are answered; afterwards it holds what it held before."""
    caplog.set_level(logging.WARNING)
    async with running_server(["calls.max_calls=200"]) as running:
        running.app[CHATS].engine = SpeakingEngine()
        if "document" in request.node.name:
            await begin_to_look_at_recordings(running.url)
        before = Footprint.now()
        yield running
        await running.end_calls()
        assert running.calls == 0
        assert await settle(before) == before
    faults = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in faults] == []


async def begin_to_look_at_recordings(url: str) -> None:
    """That is done by a process, which stays for a minute."""
    form = aiohttp.FormData({"audio_sample": io.BytesIO(b"no sound")})
    async with (
        aiohttp.ClientSession(url) as http,
        http.post("/v1/audio/voices/check", data=form) as response,
    ):
        assert response.status == 400


# ---- by the document --------------------------------------------------------------------------


def operations(url: str) -> Iterator[Any]:
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()
        if (operation.path, operation.method) != SOCKET:
            yield operation


def is_wrong_data(case: Any, mode: GenerationMode) -> bool:
    """Whether what is wrong with it can be seen: of texts and files all is possible."""
    return mode is GenerationMode.NEGATIVE and case.media_type == JSON


def tries(url: str, call_id: str) -> None:
    """Every operation, with what the document allows and with what it does not."""
    with requests.Session() as http:
        for operation in operations(url):
            for mode in GenerationMode:
                try_one(operation, mode, url, call_id, http)


def try_one(
    operation: Any, mode: GenerationMode, url: str, call_id: str, http: requests.Session
) -> None:
    is_live = operation.method in LIVE or operation.path.endswith("/accept")
    given_id = {"call_id": call_id} if "{call_id}" in operation.path and is_live else None
    if mode is GenerationMode.NEGATIVE and not operation.body:
        return

    @tried(6)
    @given(operation.as_strategy(generation_mode=mode, path_parameters=given_id))
    def run(case: Any) -> None:
        response = case.call(base_url=url, session=http, timeout=30)
        where = f"{operation.label}: {response.status_code} {response.content[:300]!r}"
        assert response.status_code not in MEANT, where
        case.validate_response(response, checks=CONFORMS)
        if is_wrong_data(case, mode) and response.status_code < 400:
            case.validate_response(response, checks=[checks.negative_data_rejection])

    run()


async def test_requests_made_by_the_document_are_answered_as_it_says(server: Running) -> None:
    caller = Caller(server.url)
    await caller.dial()
    await asyncio.to_thread(tries, server.url, caller.location.rsplit("/", 1)[1])
    caller.send({"type": "session.update", "session": {"instructions": "Still there?"}})
    told = await caller.wait_for(
        "session.updated",
        lambda event: event["session"]["instructions"] == "Still there?",  # type: ignore[index]
    )
    assert told
    await caller.close()


# ---- offers and fragments ---------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *("", "0", "-1", "65536", "9" * 30, "*", "audio", "video", "111", "udp", "\x00", "é"),
        *("m=", "a=", "a=mid:0", "a=candidate:", "a=ice-ufrag:zzzz", "a=ice-lite", "a=inactive"),
        *("m=audio 9 UDP/TLS/RTP/SAVPF 111", "a=rtpmap:111 opus/48000/2", "a=setup:passive"),
        "a=group:BUNDLE 0 0 1",
    ]
)
PLACE = st.integers(0, 10_000)


def without(lines: list[str], at: int, word: str) -> list[str]:
    return lines[:at] + lines[at + 1 :]


def doubled(lines: list[str], at: int, word: str) -> list[str]:
    return lines[: at + 1] + lines[at:]


def swapped(lines: list[str], at: int, word: str) -> list[str]:
    return [*lines[:at], *lines[at : at + 2][::-1], *lines[at + 2 :]]


def inserted(lines: list[str], at: int, word: str) -> list[str]:
    return [*lines[:at], word, *lines[at:]]


def with_word(lines: list[str], at: int, word: str) -> list[str]:
    words = lines[at].split(" ")
    words[len(word) % len(words)] = word
    return [*lines[:at], " ".join(words), *lines[at + 1 :]]


def cut(lines: list[str], at: int, word: str) -> list[str]:
    return [*lines[:at], lines[at][: len(lines[at]) // 2], *lines[at + 1 :]]


DAMAGES: list[Callable[[list[str], int, str], list[str]]] = [
    *(without, doubled, swapped, inserted, with_word, cut)
]
DAMAGE = st.lists(st.tuples(st.sampled_from(DAMAGES), PLACE, WORDS), max_size=5)


def damaged(text: str, damage: list[tuple[Any, int, str]]) -> bytes:
    lines = text.split("\r\n")
    for harm, at, word in damage:
        lines = harm(lines, at % len(lines), word) or [""]
    return "\r\n".join(lines).encode()


def refused_in_shape(response: requests.Response) -> None:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"} and error["message"]


def post_offer(http: requests.Session, url: str, body: bytes) -> int:
    """The status, of a reply that is as it should be; the call is ended."""
    response = http.post(url + CALLS, body, headers={"Content-Type": "application/sdp"})
    assert response.status_code in (201, 400), (body, response.text)
    if response.status_code == 400:
        refused_in_shape(response)
        return 400
    assert response.text.startswith("v=0\r\n") and response.headers["ETag"]
    assert http.delete(url + response.headers["Location"]).status_code == 200
    return 201


async def test_damaged_offers_are_answered_or_refused(server: Running) -> None:
    @tried(80)
    @given(st.sampled_from(sorted(OFFERS)), DAMAGE)
    def run(name: str, damage: list[tuple[Any, int, str]]) -> None:
        post_offer(http, server.url, damaged(OFFERS[name], damage))

    with requests.Session() as http:
        for name, offer in OFFERS.items():
            assert await asyncio.to_thread(post_offer, http, server.url, offer.encode()) == 201, (
                name
            )
        await asyncio.to_thread(run)


async def test_damaged_fragments_and_offers_do_no_harm_to_a_call(server: Running) -> None:
    caller = Caller(server.url)
    await caller.dial()
    ours = caller.peer.localDescription.sdp
    fragment = "\r\n".join(
        line for line in ours.split("\r\n") if line.startswith(("m=", "a=mid", "a=ice", "a=cand"))
    )
    texts = {FRAGMENT: fragment, "application/sdp": ours}

    @tried(80)
    @given(st.sampled_from(sorted(texts)), DAMAGE, st.sampled_from(["*", '"*"', '"1-x"', "W/*"]))
    def run(kind: str, damage: list[tuple[Any, int, str]], tag: str) -> None:
        headers = {"Content-Type": kind, "If-Match": tag}
        body = damaged(texts[kind], damage)
        response = http.patch(server.url + caller.location, body, headers=headers)
        assert response.status_code in (200, 204, 400, 412, 422), (body, response.text)
        if response.status_code >= 400:
            refused_in_shape(response)

    with requests.Session() as http:
        await asyncio.to_thread(run)
    caller.send({"type": "session.update", "session": {"instructions": "Still there?"}})
    await caller.wait_for("session.updated")
    await caller.close()
