"""The way of a call through the network: candidates that come late, and restarts."""

import asyncio
import re
from collections.abc import AsyncIterator

import aioice
import numpy as np
import pytest

from agent import resources
from agent.api.caller import ANYONE
from agent.api.realtime import CALLS as CALLS_KEY
from agent.engines.greeting import load_greeting
from agent.transport import peer_ice
from tests.rig.caller import RATE_HZ
from tests.rig.server import Footprint, Running, running_server, settle
from tests.rig.sound import alike, loud_s
from tests.rig.voices import say
from tests.rig.whip_caller import FRAGMENT, SDP, WhipCaller

CALLS = "/v1/realtime/calls"
FOREIGN = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"
ANY_OFFER = (
    "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n"
    "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=sendonly\r\n"
    f"{FOREIGN}a=fingerprint:sha-256 {':'.join(['00'] * 32)}\r\na=setup:actpass\r\n"
    "a=rtcp-mux\r\na=rtpmap:111 opus/48000/2\r\n"
)
HOST = "a=candidate:1 1 udp 2130706431 127.0.0.1 50000 typ host\r\n"


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    # Wall time must not end the call, however slow the machine is.
    async with running_server(["calls.watchdog_s=20"]) as running:
        yield running


@pytest.fixture
async def client(server: Running) -> AsyncIterator[WhipCaller]:
    one = WhipCaller(server.url + CALLS, kinds=("audio",), direction="sendrecv")
    yield one
    await one.close()


async def greeting(client: WhipCaller) -> float:
    """How much of the agent's greeting has come, 0..1: it is said once."""
    said = load_greeting(resources.assets_folder() / "ref_audio" / "echo_greeting.wav").samples
    await client.greeted()
    return alike(client.sound(), np.repeat(said, 2))


async def said_back(client: WhipCaller) -> float:
    """How much the agent's answer to a word or two is like them."""
    await client.greeted()
    words = say("Hello again.", RATE_HZ, level_dbfs=-20)
    since = len(client.heard)
    client.microphone.say(words)
    await client.hears_s(loud_s(words, RATE_HZ) * 0.8, since)
    await asyncio.sleep(0.3)  # what is still in the jitter buffer of the client
    return alike(client.sound(since), words)


def lost(server: Running) -> float:
    """How many packets of the microphone have not come."""
    assert server.metric('voice_agent_microphone_packets_total{fate="received"}') > 100
    return server.metric('voice_agent_microphone_packets_total{fate="lost"}')


# ---- late candidates --------------------------------------------------------------------------


async def test_whip_the_server_comes_to_a_client_by_a_late_candidate(client: WhipCaller) -> None:
    await client.post()
    visited = client.wait_for_visit()
    status, _, tag = await client.patch(client.fragment(), client.tag)
    assert (status, tag) == (204, client.tag)
    await visited
    await client.connected()


@pytest.mark.parametrize(
    ("body", "tag", "status", "code"),
    [
        (HOST, None, 428, "precondition_required"),
        (HOST, '"9-nope"', 412, "other_ice_session"),
        (HOST, "W/{tag}", 412, "other_ice_session"),
        (FOREIGN + HOST, "{tag}", 412, "other_ice_session"),
        ("a=candidate:1 1 udp x\r\n", "{tag}", 400, "invalid_fragment"),
        (HOST.replace("50000", "99999"), "{tag}", 400, "invalid_fragment"),
        ("nonsense", "{tag}", 400, "invalid_fragment"),
        ("a=ice-ufrag:a\r\n", "{tag}", 400, "invalid_fragment"),
        ("a=ice-pwd:0123456789012345678901\r\n", '"*"', 400, "invalid_fragment"),
        (FOREIGN, '"*"', 409, "not_connected"),
        (b"\xff\xfe", "{tag}", 400, "invalid_text"),
        ("a=x:y\r\n" * 60_000, "{tag}", 413, "request_too_large"),
    ],
)
async def test_whip_what_is_no_late_candidate_is_refused_and_changes_nothing(
    client: WhipCaller, server: Running, body: str, tag: str | None, status: int, code: str
) -> None:
    await client.post()
    refused, _, _ = await client.patch(body, tag and tag.format(tag=client.tag))
    assert refused == status
    assert client.refusal.get("code") == code
    ice = server.app[CALLS_KEY].ice_of(client.call_id, ANYONE)
    assert ice.tag == client.tag.strip('"')
    await client.connected()


async def test_whip_many_candidates_are_bounded(client: WhipCaller, server: Running) -> None:
    await client.post()
    many = "".join(HOST.replace("50000", str(50_000 + n)) for n in range(200))
    for _ in range(2):
        assert (await client.patch(many, f'"other", {client.tag}'))[0] == 204
    way = server.app[CALLS_KEY].ice_of(client.call_id, ANYONE)._ways[0]
    # One more is found by the checks that come from it.
    assert len(way.connection.remote_candidates) <= peer_ice.MOST_CANDIDATES + 1
    await client.connected()


async def test_whip_candidates_of_other_protocols_and_sections_are_passed_over(
    client: WhipCaller, server: Running
) -> None:
    await client.post()
    lines = [
        "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:7\r\n" + HOST,
        "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n",
        HOST.replace("udp", "tcp").strip() + " tcptype active\r\n",
        HOST.replace(":1 1 ", ":1 2 "),
        "a=end-of-candidates\r\n",
    ]
    assert (await client.patch("".join(lines), '"*"'))[0] == 204
    way = server.app[CALLS_KEY].ice_of(client.call_id, ANYONE)._ways[0]
    assert [c for c in way.connection.remote_candidates if c.type != "prflx"] == []
    await client.connected()


async def test_whip_a_call_that_is_not_there_cannot_be_steered(client: WhipCaller) -> None:
    client.location = client.endpoint / "rtc_nope"
    assert (await client.patch(HOST, '"1-abcd"'))[0] == 404
    assert client.refusal["code"] == "call_not_found"
    await client.post()
    assert (await client.patch(HOST, client.tag, kind="application/json"))[0] == 415


# ---- restarts ---------------------------------------------------------------------------------


async def test_whip_a_client_whose_network_changed_is_heard_and_answered_again(
    client: WhipCaller, server: Running
) -> None:
    await client.post()
    await client.connected()
    before, tag, answered = Footprint.now(), client.tag, client.answer
    client.lose_network()
    said = await client.restart()
    assert client.tag != tag
    assert said.sections[0].credentials is not None
    assert said.sections[0].credentials.username not in answered
    assert await said_back(client) > 0.7
    assert server.calls == 1
    assert (await client.patch(HOST, tag))[0] == 412, "that session is over"
    assert (await client.patch(HOST, client.tag))[0] == 204
    # The old sockets are closed on both sides.
    assert (await settle(before)).sockets <= before.sockets


async def test_whip_a_restart_loses_nothing_while_the_old_way_still_works(
    client: WhipCaller, server: Running
) -> None:
    await client.post()
    await client.connected()
    await client.hears_s(1.0)
    await client.restart()
    await client.hears_s(2.0)
    await client.restart()
    assert await greeting(client) > 0.9
    assert lost(server) == 0


async def test_whip_a_restart_that_comes_to_nothing_leaves_the_call_as_it_was() -> None:
    async with running_server(["calls.connect_timeout_s=1"]) as server:
        client = WhipCaller(server.url + CALLS, kinds=("audio",), direction="sendrecv")
        await client.post()
        await client.hears_s(0.5)
        before = Footprint.now()
        for _ in range(3):
            status, text, tag = await client.patch(FOREIGN.replace("ab", f"x{client.tag[1]}"), "*")
            assert status == 200 and "a=candidate:" in text and tag != client.tag
            client.tag = tag
        assert await greeting(client) > 0.9
        assert lost(server) == 0
        assert (await settle(before)) == before, "what was opened for them is closed"
        assert server.calls == 1
        await client.close()


async def test_whip_restarts_are_bounded_and_the_call_goes_on(
    client: WhipCaller, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_ice, "MOST_RESTARTS", 3)
    await client.post()
    await client.connected()
    for number in range(3):
        status, _, client.tag = await client.patch(FOREIGN.replace("cd", f"c{number}"), "*")
        assert status == 200
    offer = re.sub("a=ice-ufrag:.*", "a=ice-ufrag:other", client.peer.localDescription.sdp)
    for body, kind in ((FOREIGN, FRAGMENT), (offer, SDP)):
        assert (await client.patch(body, "*", kind))[0] == 429
        assert client.refusal["code"] == "restart_limit_exceeded"
        assert client.refusal["type"] == "rate_limit_error"
    ice = server.app[CALLS_KEY].ice_of(client.call_id, ANYONE)
    assert ice.tag == client.tag.strip('"')
    assert (await client.patch(HOST, client.tag))[0] == 204, "candidates are no restart"
    assert server.metric('voice_agent_requests_refused_total{reason="restarts"}') == 2
    ice._begun_s[0] -= peer_ice.RESTARTS_WITHIN_S
    assert (await client.patch(FOREIGN, "*"))[0] == 200, "once a minute is over"
    assert server.calls == 1


async def test_whip_hanging_up_within_a_restart_leaves_nothing() -> None:
    async with running_server() as server:
        before = Footprint.now()
        client = WhipCaller(server.url + CALLS, kinds=("audio",), direction="sendrecv")
        await client.post()
        await client.connected()
        assert (await client.patch(FOREIGN, "*"))[0] == 200
        assert await client.delete() == 200
        await client.close()
        assert await settle(before) == before


async def test_whip_sections_that_go_by_ways_of_their_own_are_restarted_together(
    server: Running,
) -> None:
    client = WhipCaller(server.url + CALLS, kinds=("audio", "video"), direction="sendrecv")
    await client.post(change=unbundled)
    assert len(client.ways) == 2 and "BUNDLE" not in client.answer
    await client.connected()
    client.lose_network()
    since = len(client.heard)
    said = await client.restart()
    assert [section.mid for section in said.sections] == ["0", "1"]
    assert len({section.credentials for section in said.sections}) == 2
    await client.hears_s(1.0, since)
    await client.close()


def unbundled(offer: str) -> str:
    return "\r\n".join(line for line in offer.split("\r\n") if "BUNDLE" not in line)


# ---- a whole offer ----------------------------------------------------------------------------


async def test_a_whole_offer_restarts_too_and_is_answered_alike(client: WhipCaller) -> None:
    await client.post()
    await client.connected()
    again = await client.offer_again()
    status, answer, tag = await client.patch(again.offer, None, SDP)
    assert status == 200, answer
    assert tag != client.tag
    fresh = [line for line in answer.splitlines() if line not in client.answer.splitlines()]
    named = {line.partition(":")[0].partition("-0")[0] for line in fresh if line[0] != "o"}
    assert named == {"a=candidate", "a=ice-ufrag", "a=ice-pwd"}
    client.lose_network()
    since = len(client.heard)
    await client.take_answer(again, answer)
    await client.hears_s(1.0, since)
    assert (await client.patch(again.offer, '"1-old"', SDP))[0] == 412


@pytest.mark.parametrize("change", [("m=audio", "m=video"), ("sha-256 ", "sha-256 00:")])
async def test_an_offer_that_changes_more_of_a_call_is_refused(
    client: WhipCaller, change: tuple[str, str]
) -> None:
    await client.post()
    again = client.peer.localDescription.sdp.replace(*change)
    assert (await client.patch(again, None, SDP))[0] == 422
    assert client.refusal["code"] == "new_media"
    await client.connected()


async def test_the_same_offer_again_changes_nothing(client: WhipCaller) -> None:
    await client.post()
    await client.connected()
    offer = client.peer.localDescription.sdp.replace("a=sendrecv", "a=sendonly")
    status, answer, tag = await client.patch(offer, client.tag, SDP)
    assert (status, tag) == (200, client.tag)
    changed = set(answer.splitlines()) ^ set(client.answer.splitlines())
    assert {line for line in changed if line[0] != "o"} == {"a=sendrecv", "a=recvonly"}


async def test_servers_that_do_not_answer_are_not_waited_for_as_long_as_aioice_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    async def gather(
        self: aioice.Connection,
        component: int,
        addresses: list[str],
        timeout: float = 5,  # noqa: ASYNC109 - aioice calls it so
    ) -> list[aioice.Candidate]:
        waited.append(timeout)
        return []

    monkeypatch.setattr(aioice.Connection, "get_component_candidates", gather)
    async with running_server() as server:
        client = WhipCaller(server.url + CALLS)
        async with client.http.post(
            client.endpoint, data=ANY_OFFER, headers={"Content-Type": SDP}
        ) as response:
            assert response.status == 201
        await client.close()
        await server.end_calls()
    assert max(waited) < 2
