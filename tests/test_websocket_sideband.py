"""Sidebands: who else may see and steer a call in progress, over the real server."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image

from agent.transport import websocket_writer
from agent.watchers import MAX_WATCHERS
from tests.rig.caller import Caller
from tests.rig.keyed_server import bearer, keyed_server
from tests.rig.realtime_schema import check_events, check_order
from tests.rig.server import Footprint, Running, running_server, settle
from tests.rig.socket_caller import SocketCaller


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running_server() as running:
        yield running


@pytest.fixture
async def caller(server: Running) -> AsyncIterator[SocketCaller]:
    """A client in a call, which has stopped the greeting."""
    client = SocketCaller(server.url)
    await client.dial()
    await client.wait_for("response.created")
    await client.send("response.cancel")
    await client.wait_for("response.done")
    yield client
    await client.hang_up()


def id_of(location: str) -> str:
    return location.rpartition("/")[2]


async def attached(server: Running, location: str, *, deaf: bool = False) -> SocketCaller:
    """A sideband of the call at `location`."""
    side = SocketCaller(server.url, f"call_id={id_of(location)}", deaf=deaf)
    await side.dial()
    return side


def ids(caller: SocketCaller, since: int) -> list[str]:
    """The ids of its events from that one on, but for those of our extension, which not every
    client is told."""
    events = [one for one in caller.events if not str(one["type"]).startswith("voice_agent.")]
    return [str(event["event_id"]) for event in events[since:]]


async def test_a_sideband_sees_and_steers_a_call(server: Running, caller: SocketCaller) -> None:
    await caller.send("session.update", session={"type": "realtime", "instructions": "Be brief."})
    await caller.wait_for("session.updated")
    side = await attached(server, caller.location)
    created = side.events[0]
    assert created["type"] == "session.created"
    assert created["session"]["instructions"] == "Be brief."  # type: ignore[index]
    known = len(caller.types())
    await side.send("session.update", session={"type": "realtime", "instructions": "Be kind."})
    for one in (caller, side):
        updated = await one.wait_for("session.updated", after=known if one is caller else 0)
        assert updated["session"]["instructions"] == "Be kind."  # type: ignore[index]
    await side.send("response.create")
    await side.wait_for("response.output_audio.delta")
    await side.send("response.cancel")
    await side.wait_for("response.done")
    await caller.wait_for("response.done", after=known)
    assert ids(caller, known) == ids(side, 1), "the very same events, in their order"
    check_events(side.events)
    await side.hang_up()


async def test_a_sideband_may_send_all_but_sound(server: Running, caller: SocketCaller) -> None:
    side = await attached(server, caller.location)
    known = len(caller.events)
    await side.send("input_audio_buffer.append", audio="AAAA", event_id="mine")
    error: dict[str, object] = (await side.wait_for("error"))["error"]  # type: ignore[assignment]
    assert (error["code"], error["event_id"]) == ("no_audio_on_sideband", "mine")
    await side.socket.send_str("no json")
    await side.wait_for("error", lambda event: event["error"]["code"] == "invalid_json")  # type: ignore[index]
    await caller.send("input_audio_buffer.clear")
    await caller.wait_for("input_audio_buffer.cleared")
    codes = [event["error"]["code"] for event in caller.events[known:] if event["type"] == "error"]  # type: ignore[index]
    assert codes == [], "clients end at an error that is not theirs"
    await side.hang_up()


async def test_a_sideband_s_event_of_too_many_values_is_looked_at_by_nobody(
    server: Running, caller: SocketCaller
) -> None:
    side = await attached(server, caller.location)
    await side.send("input_audio_buffer.append", audio="AAAA", pad=[0] * 65_536)
    error = (await side.wait_for("error"))["error"]
    assert error["code"] == "message_too_large", "what it asks for was not read"  # type: ignore[index]
    await side.hang_up()


def picture_item() -> dict[str, object]:
    """A message with a picture of a megabyte."""
    noise = np.random.default_rng(3).integers(0, 256, (600, 600, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    part = {"type": "input_image", "image_url": url}
    return {"type": "message", "role": "user", "content": [part]}


async def test_a_sideband_shows_pictures_as_large_as_the_calls_own_client(
    server: Running, caller: SocketCaller
) -> None:
    side = await attached(server, caller.location)
    await side.send("conversation.item.create", item=picture_item())
    done = await side.wait_for("conversation.item.done")
    assert done["item"]["content"][0]["type"] == "input_image"  # type: ignore[index]
    await side.hang_up()


async def test_a_sideband_shows_a_webrtc_call_pictures_that_its_own_channel_does_not_take(
    server: Running,
) -> None:
    caller = Caller(server.url)
    await caller.dial()
    side = await attached(server, caller.location)
    await side.send("conversation.item.create", item=picture_item(), event_id="shown")
    done = await side.wait_for("conversation.item.done")
    assert done["item"]["content"][0]["type"] == "input_image"  # type: ignore[index]
    told = await caller.wait_for("conversation.item.done")
    assert told["item"]["id"] == done["item"]["id"]  # type: ignore[index]
    with pytest.raises(ValueError, match="262144"):
        caller.send(json.dumps({"type": "input_audio_buffer.clear"}).ljust(300_000))
    known = len(side.events)
    await side.send("conversation.item.create", item=picture_item() | {"pad": "x" * 4_194_304})
    error = (await side.wait_for("error", after=known))["error"]
    assert error["code"] == "message_too_large"  # type: ignore[index]
    await side.hang_up()
    await caller.close()


async def test_what_a_sideband_writes_may_be_longer_than_a_data_channel_takes(
    server: Running,
) -> None:
    caller = Caller(server.url)
    await caller.dial()
    side = await attached(server, caller.location)
    part = {"type": "input_text", "text": "\N{GRINNING FACE}" * 32_768}
    item = {"type": "message", "role": "user", "content": [part]}
    await side.send("conversation.item.create", item=item)
    done = await side.wait_for("conversation.item.done")
    assert done["item"]["content"] == [part]  # type: ignore[index]
    error = (await caller.wait_for("error"))["error"]
    assert error["code"] == "event_too_large"  # type: ignore[index]
    await side.send("input_audio_buffer.clear")
    await caller.wait_for("input_audio_buffer.cleared")
    await side.hang_up()
    await caller.close()


async def test_a_sideband_is_told_of_our_extension_once_it_uses_it(
    server: Running, caller: SocketCaller
) -> None:
    """Some stock clients end at an event that they do not know, on either end."""
    side = await attached(server, caller.location)
    await side.send("response.create")
    await side.wait_for("response.output_audio.delta")  # the state has changed by then
    assert not [name for name in side.types(extensions=True) if name.startswith("voice_agent.")]
    known = len(side.events)
    await side.send("voice_agent.listen", on=True)
    first = await side.wait_for("voice_agent.state", after=known)
    assert first["state"] == "speaking", "how it is, before how it becomes"
    await side.wait_for("voice_agent.state", lambda event: event["state"] == "listening")
    await caller.send("input_audio_buffer.clear")
    await caller.wait_for("input_audio_buffer.cleared")
    assert caller.types(extensions=True) == caller.types(), "the client has not asked for them"
    await side.hang_up()


async def test_the_call_goes_on_without_its_sideband_and_closes_it_at_its_end(
    server: Running, caller: SocketCaller
) -> None:
    first, second = [await attached(server, caller.location) for _ in range(2)]
    await first.hang_up()
    await caller.send("input_audio_buffer.clear")
    await second.wait_for("input_audio_buffer.cleared")
    await caller.hang_up()
    assert await second.wait_until_closed() == aiohttp.WSCloseCode.OK
    await second.hang_up()


async def test_a_webrtc_call_has_sidebands_too(server: Running) -> None:
    peer = Caller(server.url)
    await peer.dial()
    side = await attached(server, peer.location)
    await side.send("session.update", session={"type": "realtime", "instructions": "Be kind."})
    updated = await peer.wait_for("session.updated")
    assert updated["session"]["instructions"] == "Be kind."  # type: ignore[index]
    await side.wait_for("session.updated")
    await peer.close()
    assert await side.wait_until_closed() == aiohttp.WSCloseCode.OK
    await side.hang_up()


async def test_a_client_that_comes_later_is_told_what_a_sideband_did_before(
    server: Running,
) -> None:
    """Who opened the call for somebody prepares it meanwhile."""
    peer = Caller(server.url)
    offer = await peer.offer()
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"{server.url}/v1/realtime/calls",
            data=offer,
            headers={"Content-Type": "application/sdp"},
        ) as response,
    ):
        answer, location = await response.text(), response.headers["Location"]
    side = await attached(server, location)
    await side.send("session.update", session={"type": "realtime", "instructions": "Be kind."})
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
    await side.send("conversation.item.create", item={"id": "before", **message})
    await side.wait_for("conversation.item.done")
    await peer.accept(answer)
    await peer.wait_for("response.done")
    created, *others = peer.events
    assert created["session"]["instructions"] == "Be kind."  # type: ignore[index]
    assert "session.updated" not in [event["type"] for event in others]
    assert await peer.wait_for("conversation.item.added", lambda one: one["item"]["id"] == "before")  # type: ignore[index]
    await side.wait_for("response.done")
    check_order(check_events(peer.events))
    check_order(check_events(side.events))
    await peer.close()
    await side.hang_up()


async def test_no_call_no_sideband(server: Running) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await refused(server, "rtc_0123")
    assert caught.value.status == 404


async def refused(server: Running, call_id: str) -> None:
    side = SocketCaller(server.url, f"call_id={call_id}")
    try:
        await side.dial()
    finally:
        await side.close_http()


async def test_only_who_has_the_calls_key_may_attach(tmp_path: Path) -> None:
    """Browsers name it as a subprotocol. Of somebody else's call nobody learns that it is there."""
    async with keyed_server(tmp_path) as server:
        keys = {name: server.add_key(name) for name in ("alice", "bob")}
        caller = SocketCaller(server.running.url)
        offered = ("realtime", f"openai-insecure-api-key.{keys['alice']}")
        await caller.dial(protocols=offered)
        assert caller.socket.protocol == "realtime"
        for key, status in (("bob", 404), ("", 401)):
            side = SocketCaller(server.running.url, f"call_id={id_of(caller.location)}")
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await side.dial(headers=bearer(keys.get(key, "")))
            assert caught.value.status == status
            await side.close_http()
        side = SocketCaller(server.running.url, f"call_id={id_of(caller.location)}")
        await side.dial(headers=bearer(keys["alice"]))
        await side.hang_up()
        await caller.hang_up()


async def test_so_many_may_attach_and_a_place_is_free_again(
    server: Running, caller: SocketCaller
) -> None:
    sides = [await attached(server, caller.location) for _ in range(MAX_WATCHERS)]
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await refused(server, id_of(caller.location))
    assert caught.value.status == 503
    await sides.pop().hang_up()
    async with asyncio.timeout(60):
        while True:
            try:
                sides.append(await attached(server, caller.location))
                break
            except aiohttp.WSServerHandshakeError:
                await asyncio.sleep(0.05)
    for side in sides:
        await side.hang_up()


async def test_a_sideband_that_does_not_read_is_dropped_and_the_call_goes_on(
    server: Running, caller: SocketCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_writer, "STUCK_S", 0.5)
    deaf = await attached(server, caller.location, deaf=True)
    long = {"type": "realtime", "instructions": "x" * 20_000}
    known = len(caller.events)
    for number in range(400):
        await caller.send("session.update", session=long)
        await caller.wait_for("session.updated", after=known + number)
    assert await deaf.was_dropped()
    await caller.send("input_audio_buffer.clear")
    await caller.wait_for("input_audio_buffer.cleared", after=known)
    assert server.calls == 1
    await deaf.hang_up()


async def test_sidebands_leave_nothing_behind(server: Running, caller: SocketCaller) -> None:
    await (await attached(server, caller.location)).hang_up()
    await asyncio.sleep(0.1)
    before = Footprint.now()
    for _ in range(10):
        side = await attached(server, caller.location)
        await side.socket.send_str(json.dumps({"type": "input_audio_buffer.clear"}))
        await side.hang_up()
    assert await settle(before) == before
