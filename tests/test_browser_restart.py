"""A real Chromium whose way to the server breaks: it finds another, and the call goes on."""

from pathlib import Path
from typing import Any

from agent.api.realtime import CALLS
from tests.rig.server import Running, running_server
from tests.test_browser_call import script, visit

KEEP_PEER = """
const Real = window.RTCPeerConnection;
window.RTCPeerConnection = function (...given) {
  window.configuration = given[0];
  return (window.peer = new Real(...given));
};
window.RTCPeerConnection.prototype = Real.prototype;
"""
ANSWER = "window.peer.remoteDescription.sdp"
PACKETS = """async () => [...(await window.peer.getStats()).values()]
  .find((each) => each.type === 'inbound-rtp' && each.kind === 'audio').packetsReceived"""
HEARD = (
    "(from) => window.heardEvents.slice(from).some(({ type }) => type.endsWith('speech_started'))"
)


def break_way(server: Running) -> None:
    """What is sent by the sockets that there are gets lost from now on, in and out."""
    (live,) = server.app[CALLS]._live.values()
    transport: Any = live.transport
    for way in transport.signalled()._ways:
        for protocol in way.transport._connection._protocols:
            protocol.transport.sendto = lambda *_: None
            protocol.datagram_received = lambda *_: None


async def test_a_call_goes_on_by_another_way(tmp_path: Path) -> None:
    # Wall time must not end the call, however slow the machine is.
    options = ["calls.watchdog_s=20", "rtc.ice_servers=stun:127.0.0.1:9"]
    async with running_server(options) as server:
        async with visit(server, script("Is anybody there?", 3.0), tmp_path) as person:
            page = person.page
            await page.add_init_script(KEEP_PEER)
            await page.reload()
            await person.start()
            told = await page.evaluate("window.configuration")
            assert told == {"iceServers": [{"urls": ["stun:127.0.0.1:9"]}]}
            calls, answer = server.call_ids, await page.evaluate(ANSWER)
            break_way(server)
            await page.wait_for_function(f"(first) => {ANSWER} !== first", arg=answer)
            packets, events = await page.evaluate(PACKETS), len(await person.events())
            await page.wait_for_function(f"async () => (await ({PACKETS})()) > {packets + 50}")
            await page.wait_for_function(HEARD, arg=events)
            assert server.call_ids == calls, "the same call"
            assert "broke" not in await page.inner_text("#hint")
            assert (await person.events())[0]["type"] == "session.created"
            kinds = [event["type"] for event in await person.events()]
            assert kinds.count("session.created") == 1
