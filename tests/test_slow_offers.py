"""Offers that come slowly, or never to their end: who sends them keeps nobody else waiting."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.api import bodies, calls
from agent.api.realtime import CALLS
from tests.rig.caller import Caller
from tests.rig.keyed_server import KeyedServer, keyed_server, problem

OFFERS = "/v1/realtime/calls"
SDP = {"Content-Type": "application/sdp"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyedServer]:
    async with keyed_server(tmp_path) as running:
        yield running


class SlowOffer:
    """A request whose body has begun, and goes on when it is told to."""

    def __init__(self, server: KeyedServer, key: str) -> None:
        self.finished = asyncio.Event()
        self._asked = server.ask(key, "POST", OFFERS, data=self._body(), headers=SDP)
        self.answer = asyncio.ensure_future(self._asked)

    async def _body(self) -> AsyncIterator[bytes]:
        yield b"v=0\r\n"
        await self.finished.wait()


async def until_read(server: KeyedServer, count: int) -> None:
    async with asyncio.timeout(60):
        while server.running.app[CALLS]._reading.total() != count:
            await asyncio.sleep(0.01)


async def test_one_key_s_slow_offers_leave_room_for_those_of_others(
    server: KeyedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * calls._MAX_READING_EACH <= calls._MAX_READING
    monkeypatch.setattr(calls, "_MAX_READING_EACH", 3)
    slow, other = server.add_key("slow"), server.add_key("other")
    secret = (await server.secret(slow))["value"]
    offers = [SlowOffer(server, key) for key in (slow, slow, secret)]
    await until_read(server, 3)
    for key in (slow, secret):
        status, document, headers = await server.ask(key, "POST", OFFERS, data=b"", headers=SDP)
        assert status == 429 and headers["Retry-After"] == "5"
        assert problem(document)["type"] == "rate_limit_error"
    assert server.refused("bodies") == 2
    peer = Caller(server.running.url)
    status, _, headers = await server.ask(
        other, "POST", OFFERS, data=await peer.offer(), headers=SDP
    )
    assert status == 201
    assert await server.status(other, "DELETE", headers["Location"]) == 200
    await peer.close()
    for offer in offers:
        offer.finished.set()
    assert {(await offer.answer)[0] for offer in offers} == {400}
    await until_read(server, 0)
    assert await server.status(slow, "POST", OFFERS, data=b"", headers=SDP) == 400


async def test_slow_offers_are_given_up_and_those_who_vanish_hold_no_place(
    server: KeyedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.2)
    key = server.add_key("slow")
    offer = SlowOffer(server, key)
    status, document, _ = await offer.answer
    assert status == 408 and problem(document)["code"] == "request_timeout"
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 60.0)
    gone = SlowOffer(server, key)
    await until_read(server, 1)
    gone.answer.cancel()
    await until_read(server, 0)
    offer.finished.set()
    gone.finished.set()
    assert server.running.calls == 0


# ---- forms that take long to take apart -------------------------------------------------------


def form_part(name: str, content: bytes, head: bytes = b"") -> bytes:
    disposition = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n'.encode()
    return disposition + head + b"\r\n" + content + b"\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"".join(form_part(f"p{at}", b"") for at in range(17)) + b"--x--\r\n", "16 parts"),
        (form_part("sdp", b"v=0", b"Content-Transfer-Encoding: base64\r\n") + b"--x--", "coding"),
        (b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y--\r\n--x--\r\n", "form"),
    ],
)
async def test_odd_forms_are_refused(server: KeyedServer, body: bytes, says: str) -> None:
    status, document, _ = await server.ask("", "POST", OFFERS, data=body, headers=FORM)
    assert status == 400 and says in problem(document)["message"]


async def test_of_a_form_what_is_not_asked_for_is_passed_over(server: KeyedServer) -> None:
    peer = Caller(server.running.url)
    offer = (await peer.offer()).encode()
    body = form_part("other", b"1") + form_part("sdp", offer, b"Content-Type: application/sdp\r\n")
    body += form_part("session", b'{"type": "realtime", "instructions": "Be brief."}') + b"--x--"
    status, _, headers = await server.ask("", "POST", OFFERS, data=body, headers=FORM)
    assert status == 201
    _, call, _ = await server.ask("", path=headers["Location"])
    assert call["session"]["instructions"] == "Be brief."
    await server.running.end_calls()
    await peer.close()
