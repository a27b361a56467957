"""PyPI `openai`, its HTTP side: a secret, a call by `calls.create`, aiortc as the peer, a sideband.

The SDK makes no WebRTC connection of its own; its users bring one, and this is aiortc's.
"""

import asyncio
import base64
import json
from contextlib import suppress
from fractions import Fraction

import aioice.ice
import av
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from openai import APIStatusError, AsyncOpenAI
from scenario import RATE_HZ, TOOL, TOOL_RESULT, Client, Turn, go
from websockets.exceptions import ConnectionClosed

_FRAME_MS = 20
"""aiortc gives all packets of one frame the same time, so a frame must be one packet."""


class MicrophoneTrack(MediaStreamTrack):
    """The client's microphone as aiortc reads it."""

    kind = "audio"

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._frames = client.microphone.frames(_FRAME_MS)
        self._sent = 0

    async def recv(self) -> AudioFrame:
        sound = await anext(self._frames)
        if self.readyState != "live":
            raise MediaStreamError
        frame = AudioFrame(format="s16", layout="mono", samples=len(sound) // 2)
        frame.planes[0].update(sound)
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, self._sent, Fraction(1, RATE_HZ)
        self._sent += frame.samples
        return frame


class OpenAIPythonCalls(Client):
    async def connect(self) -> None:
        base = self.given.base
        urls = {
            "base_url": f"{base}/v1",
            "websocket_base_url": f"{base.replace('http', 'ws', 1)}/v1",
        }
        session = {
            "type": "realtime",
            "instructions": "Be short.",
            "tools": [{"type": "function", "name": TOOL, "parameters": {"type": "object"}}],
        }
        keeper = AsyncOpenAI(api_key=self.given.key, **urls)
        secret = await keeper.realtime.client_secrets.create(
            expires_after={"anchor": "created_at", "seconds": 60}, session=session
        )
        self._openai = AsyncOpenAI(api_key=secret.value, **urls)
        self._keeper = keeper
        self._peer = RTCPeerConnection()
        self._track = MicrophoneTrack(self)
        self._peer.addTrack(self._track)
        self._channel = self._peer.createDataChannel("oai-events")
        self._channel.on("message", self._take)
        self._peer.on("track", self._listen_to)
        self._heard = bytearray()
        await self._peer.setLocalDescription(await self._peer.createOffer())
        answer = await self._openai.realtime.calls.create(sdp=self._peer.localDescription.sdp)
        self._call_id = answer.response.headers["location"].rsplit("/", 1)[1]
        sdp = RTCSessionDescription(answer.text, "answer")
        await self._peer.setRemoteDescription(sdp)
        known = len(self.events)
        await self.until(
            lambda: any(e["type"] == "session.created" for e in self.events[known:]),
            "session.created",
        )

    async def close(self) -> None:
        """Hang up over HTTP, and see that the call is gone."""
        await self._keeper.realtime.calls.hangup(self._call_id)
        await self.until(lambda: self._channel.readyState == "closed", "end of the call")
        self._track.stop()
        await self._peer.close()
        await self.end_tasks()
        with suppress(APIStatusError):
            await self._keeper.realtime.calls.hangup(self._call_id)
            self.faults.append("the call was there after it was hung up")

    async def history(self) -> list[dict[str, object]]:
        """As a sideband connection sees it: `connect(call_id=…)`."""
        async with self._keeper.realtime.connect(call_id=self._call_id) as side:
            items = []
            for turn in list(self.turns):
                await side.conversation.item.retrieve(item_id=turn.item_id)
                with suppress(ConnectionClosed):
                    async for event in side:
                        if event.type == "conversation.item.retrieved":
                            parts = event.item.content
                            text = "".join(part.transcript or "" for part in parts)
                            items.append({"role": "assistant", "text": text})
                            break
            return items

    async def type_text(self, text: str) -> None:
        self._ask({"type": "input_text", "text": text})

    async def show_picture(self, picture: bytes) -> None:
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        self._ask({"type": "input_image", "image_url": url})

    def _ask(self, part: dict[str, str]) -> None:
        item = {"type": "message", "role": "user", "content": [part]}
        self._send({"type": "conversation.item.create", "item": item})
        self._send({"type": "response.create"})

    def _send(self, event: dict[str, object]) -> None:
        self._channel.send(json.dumps(event))

    def _take(self, message: str) -> None:
        event = json.loads(message)
        self.notice(event)
        if event["type"] == "response.done":
            self._call(event["response"]["output"])

    def sounded_s(self) -> float:
        return len(self._heard) / 2 / RATE_HZ

    def sound_of(self, turn: Turn) -> bytes:
        return bytes(self._heard)

    def _call(self, output: list[dict[str, str]]) -> None:
        calls = [item for item in output if item["type"] == "function_call"]
        for each in calls:
            self.calls.append({"name": each["name"], "arguments": json.loads(each["arguments"])})
            item = {"type": "function_call_output", "call_id": each["call_id"]}
            item["output"] = TOOL_RESULT
            self._send({"type": "conversation.item.create", "item": item})
        if calls:
            self._send({"type": "response.create"})

    def _listen_to(self, track: MediaStreamTrack) -> None:
        self.tasks.append(asyncio.ensure_future(self._listen(track)))

    async def _listen(self, track: MediaStreamTrack) -> None:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
        with suppress(MediaStreamError):
            while True:
                for frame in resampler.resample(await track.recv()):
                    self._heard += bytes(frame.planes[0])[: frame.samples * 2]


if __name__ == "__main__":
    # Server and client are on one machine, which may have no other address.
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    go(OpenAIPythonCalls)
