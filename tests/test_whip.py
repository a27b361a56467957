"""WHIP clients against the real server: they publish, are followed by others, and leave."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aioice.ice
import pytest
from aiortc import RTCSessionDescription

from tests.rig.caller import RATE_HZ
from tests.rig.server import Footprint, Running, running_server, settle
from tests.rig.socket_caller import SocketCaller
from tests.rig.sound import loud_s
from tests.rig.voices import say
from tests.rig.whip_caller import WhipCaller

CALLS = "/v1/realtime/calls"
STOPPED = "output_audio_buffer.stopped"
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


async def followed(server: Running, location: str) -> SocketCaller:
    """A sideband of that call, once the agent has greeted."""
    sideband = SocketCaller(server.url, f"call_id={location.rsplit('/', 1)[1]}")
    await sideband.dial()
    await sideband.wait_for(STOPPED)
    return sideband


async def test_conformance_whip_a_publisher_is_seen_and_heard_and_followed_by_a_sideband() -> None:
    async with running_server() as server:
        before = Footprint.now()
        publisher = WhipCaller(server.url + CALLS)
        headers = await publisher.post()
        assert headers["Content-Type"] == "application/sdp"
        assert "application/trickle-ice-sdpfrag" in headers["Accept-Patch"]
        assert "a=sendrecv" not in publisher.answer and "a=sendonly" not in publisher.answer
        sideband = await followed(server, headers["Location"])
        await publisher.connected()
        publisher.microphone.say(say("The quick brown fox.", RATE_HZ, level_dbfs=-20))
        await sideband.wait_for("input_audio_buffer.speech_started")
        done = await sideband.wait_for(
            "response.output_audio_transcript.done", lambda event: "saw" in str(event["transcript"])
        )
        assert "I saw 640×480 pixels" in str(done["transcript"])
        assert await publisher.delete() == 200
        await sideband.wait_until_closed()
        assert server.calls == 0
        assert await publisher.delete() == 404
        await sideband.hang_up()
        await publisher.close()
        assert await settle(before) == before


async def test_whip_who_receives_hears_the_agent_whether_they_send_or_not(server: Running) -> None:
    await asyncio.gather(*(greets(server, direction) for direction in ("sendrecv", "recvonly")))


async def greets(server: Running, direction: str) -> None:
    client = WhipCaller(server.url + CALLS, kinds=("audio",), direction=direction)
    headers = await client.post(candidates=direction == "sendrecv")
    sideband = await followed(server, headers["Location"])
    assert loud_s(client.sound(), RATE_HZ) > 1, "the greeting"
    assert await client.delete() == 200
    await sideband.hang_up()
    await client.close()


def bundle_only(offer: str) -> str:
    """As Firefox has it: whatever goes by the first section's way is offered at port 0."""
    head, first, *rest = re.split(r"(?m)^(?=m=)", offer)
    later = [re.sub(r"^m=(\w+) \d+", r"m=\1 0", each) + "a=bundle-only\r\n" for each in rest]
    return "".join([head, first, *later])


def with_useless_sections(offer: str) -> str:
    """Some that no call can use, at the end and not in the bundle."""
    odd = "m=video 0 UDP/TLS/RTP/SAVPF 97\r\na=inactive\r\na=mid:8\r\n"
    return offer + odd + "m=message 9 TCP/MSRP *\r\na=mid:9\r\n"


@pytest.mark.parametrize("change", [bundle_only, with_useless_sections])
async def test_whip_offers_with_odd_sections_are_connected(
    server: Running, change: Callable[[str], str]
) -> None:
    client = WhipCaller(server.url + CALLS)
    async with client.http.post(
        client.endpoint,
        data=change(await client.offer()),
        headers={"Content-Type": "application/sdp"},
    ) as response:
        assert response.status == 201
        answer = await response.text()
    head, *sections = re.split(r"(?m)^(?=m=)", answer)
    used, refused = sections[:2], sections[2:]
    assert all(each.split()[1] == "0" for each in refused)
    assert len(refused) == (2 if change is with_useless_sections else 0)
    await client.peer.setRemoteDescription(RTCSessionDescription(head + "".join(used), "answer"))
    await client.connected()
    await client.close()


async def test_whip_the_endpoint_says_what_it_takes(server: Running) -> None:
    client = WhipCaller(server.url + CALLS)
    async with client.http.options(client.endpoint) as response:
        assert response.status == 204
        assert "application/sdp" in response.headers["Accept-Post"]
    await client.close()


async def test_whip_servers_of_the_settings_are_linked() -> None:
    servers = 'stun:127.0.0.1:9,turn:an"n:sec\\ret@127.0.0.1:9?transport=udp'
    async with running_server([f"rtc.ice_servers={servers}"]) as server:
        client = WhipCaller(server.url + CALLS)
        headers = await client.post()
        stun, turn = headers.getall("Link")
        assert stun == '<stun:127.0.0.1:9>; rel="ice-server"'
        assert turn == (
            '<turn:127.0.0.1:9?transport=udp>; rel="ice-server"; username="an\\"n"; '
            'credential="sec\\\\ret"; credential-type="password"'
        )
        await client.close()


async def test_whip_a_proxy_s_prefix_stands_before_the_location(server: Running) -> None:
    client = WhipCaller(server.url + CALLS)
    for prefix, path in (("/agent/", "/agent"), ("//evil.example", ""), ("/a b", "")):
        client.http.headers["X-Forwarded-Prefix"] = prefix
        async with client.http.post(
            client.endpoint, data=await client.offer(), headers={"Content-Type": "application/sdp"}
        ) as response:
            assert response.headers["Location"].startswith(f"{path}{CALLS}/rtc_")
        async with client.http.get(
            f"{server.url}/v1/realtime?model=x", headers=UPGRADE
        ) as response:
            assert response.status == 101
            assert response.headers["Location"].startswith(f"{path}{CALLS}/rtc_")
    await client.close()
    await server.end_calls()


async def test_names_in_the_local_network_do_not_keep_the_answer_waiting(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, known = asyncio.Event(), asyncio.Event()

    async def nobody_knows_yet(*_: object) -> None:
        asked.set()
        await known.wait()
        raise OSError("no multicast here")

    monkeypatch.setattr(aioice.ice, "get_or_create_mdns_protocol", nobody_knows_yet)
    client = WhipCaller(server.url + CALLS, kinds=("audio",))
    offer = await client.offer()
    hidden = "a=candidate:1 1 udp 2113937151 0c8d6f1e-1f0c-4d5b.local 50000 typ host\r\n"
    async with client.http.post(
        client.endpoint, data=offer + hidden, headers={"Content-Type": "application/sdp"}
    ) as response:
        assert response.status == 201
        location = response.headers["Location"]
    await asyncio.wait_for(asked.wait(), 60)
    known.set()
    async with client.http.get(server.url + location) as response:
        assert (await response.json())["status"] == "connecting", "the call goes on without it"
    await client.close()
    await server.end_calls()


async def test_conformance_whip_ffmpeg_publishes_sound_and_pictures(
    server: Running, tmp_path: Path
) -> None:
    program = [sys.executable, "-m", "tests.rig.ffmpeg_whip", server.url + CALLS, str(tmp_path)]
    publisher = await asyncio.create_subprocess_exec(
        *program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert publisher.stdin is not None
    async with asyncio.timeout(30):
        while not (calls := server.call_ids):
            await asyncio.sleep(0.01)
    sideband = await followed(server, f"/{calls[0]}")
    publisher.stdin.write(b"speak\n")
    done = await sideband.wait_for(
        "response.output_audio_transcript.done", lambda event: "saw" in str(event["transcript"])
    )
    assert "I saw 320×240 pixels" in str(done["transcript"])
    publisher.stdin.write(b"stop\n")
    output, _ = await asyncio.wait_for(publisher.communicate(), 30)
    assert publisher.returncode == 0, output.decode()
    await sideband.wait_until_closed()
    assert server.metric('voice_agent_calls_total{outcome="hung_up"}') == 1, "by DELETE"
    await sideband.hang_up()
