"""PyPI `openai`, its WebSocket: `client.realtime.connect(model=…)`."""

import asyncio
import base64
import json
from contextlib import suppress

from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from openai.types.realtime import ConversationItem
from scenario import TOOL, TOOL_RESULT, Client, go
from websockets.exceptions import ConnectionClosed


class OpenAIPython(Client):
    _connection: AsyncRealtimeConnection

    async def connect(self) -> None:
        base = self.given.base
        openai = AsyncOpenAI(
            api_key=self.given.key,
            base_url=f"{base}/v1",
            websocket_base_url=f"{base.replace('http', 'ws', 1)}/v1",
        )
        self._manager = openai.realtime.connect(model="gpt-realtime")
        self._connection = await self._manager.__aenter__()
        await self._connection.session.update(
            session={
                "type": "realtime",
                "instructions": "Be short.",
                "output_modalities": ["audio"],
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24000},
                        "turn_detection": {"type": "server_vad"},
                    },
                    "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"},
                },
                "tools": [{"type": "function", "name": TOOL, "parameters": {"type": "object"}}],
            }
        )
        known = len(self.events)
        self.tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._speak())]
        await self.until(
            lambda: any(e["type"] == "session.updated" for e in self.events[known:]),
            "session.updated",
        )

    async def close(self) -> None:
        await self._connection.close()
        await self.end_tasks()

    async def history(self) -> list[dict[str, object]]:
        """The SDK keeps none: what it makes of the server's items."""
        items = []
        for turn in self.turns:
            items.append({"role": "assistant", "text": await self.retrieve(turn.item_id)})
        return items

    async def retrieve(self, item_id: str) -> str | None:
        known = len(self.events)
        await self._connection.conversation.item.retrieve(item_id=item_id)
        await self.until(
            lambda: any(
                e["type"] == "conversation.item.retrieved" and e["item"]["id"] == item_id
                for e in self.events[known:]
            ),
            "conversation.item.retrieved",
        )
        item = next(
            e["item"]
            for e in self.events[known:]
            if e["type"] == "conversation.item.retrieved" and e["item"]["id"] == item_id
        )
        return "".join(part.get("transcript") or "" for part in item["content"])

    async def type_text(self, text: str) -> None:
        await self._connection.conversation.item.create(
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": text}],
            }
        )
        await self._connection.response.create()

    async def show_picture(self, picture: bytes) -> None:
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        await self._connection.conversation.item.create(
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_image", "image_url": url}],
            }
        )
        await self._connection.response.create()

    async def _speak(self) -> None:
        with suppress(ConnectionClosed):
            async for frame in self.microphone.frames():
                sound = base64.b64encode(frame).decode()
                await self._connection.input_audio_buffer.append(audio=sound)

    async def _listen(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                data = await self._connection.recv_bytes()
                event = self._connection.parse_event(data)
                playing = {turn.item_id for turn in self.turns if turn.stopped_ms < 0}
                self.notice(json.loads(data))
                if event.type == "input_audio_buffer.speech_started":
                    await self._cut(playing)
                elif event.type == "response.done":
                    await self._call(event.response.output or [])

    async def _cut(self, playing: set[str]) -> None:
        """Tell how much of what was stopped just now was heard, as the SDK's guide says."""
        for turn in self.turns:
            if turn.item_id in playing and turn.stopped_ms >= 0:
                turn.asked_ms = turn.stopped_ms
                await self._connection.conversation.item.truncate(
                    item_id=turn.item_id, content_index=0, audio_end_ms=turn.stopped_ms
                )

    async def _call(self, output: list[ConversationItem]) -> None:
        calls = [item for item in output if item.type == "function_call"]
        for item in calls:
            self.calls.append({"name": item.name, "arguments": json.loads(item.arguments)})
            await self._connection.conversation.item.create(
                item={
                    "type": "function_call_output",
                    "call_id": item.call_id,
                    "output": TOOL_RESULT,
                }
            )
        if calls:
            await self._connection.response.create()


if __name__ == "__main__":
    go(OpenAIPython)
