"""PyPI `openai-agents`: `RealtimeRunner` and its session, over a WebSocket."""

import asyncio
import base64
import json
import logging

from agents import function_tool
from agents.realtime import (
    RealtimeAgent,
    RealtimePlaybackTracker,
    RealtimeRunner,
    RealtimeSession,
)
from scenario import BYTES_PER_MS, TOOL, TOOL_RESULT, Client, go

_TICK_MS = 20


class AgentsPython(Client):
    _session: RealtimeSession

    async def connect(self) -> None:
        @function_tool(name_override=TOOL)
        def look_up(key: str) -> str:
            """Look something up."""
            self.calls.append({"name": TOOL, "arguments": {"key": key}})
            return TOOL_RESULT

        agent = RealtimeAgent(name="Tester", instructions="Be short.", tools=[look_up])
        self._tracker = RealtimePlaybackTracker()
        base = self.given.base.replace("http", "ws", 1)
        self._session = await RealtimeRunner(agent).run(
            model_config={
                "api_key": self.given.key,
                "url": f"{base}/v1/realtime?model=gpt-realtime",
                "playback_tracker": self._tracker,
            }
        )
        await self._session.enter()
        known = len(self.events)
        work = (self._listen(), self._speak(), self._play())
        self.tasks = [asyncio.create_task(each) for each in work]
        await self.until(
            lambda: any(e["type"] == "session.updated" for e in self.events[known:]),
            "session.updated",
        )

    async def close(self) -> None:
        await self.end_tasks()
        await self._session.close()

    async def history(self) -> list[dict[str, object]]:
        items = []
        for item in self._history:
            if item.type == "message":
                texts = [
                    getattr(part, "text", None) or getattr(part, "transcript", None) or ""
                    for part in item.content
                ]
                items.append({"role": item.role, "text": "".join(texts)})
        return items

    async def type_text(self, text: str) -> None:
        await self._session.send_message(text)

    async def show_picture(self, picture: bytes) -> None:
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        content = [{"type": "input_image", "image_url": url}]
        await self._session.send_message({"type": "message", "role": "user", "content": content})

    async def _speak(self) -> None:
        async for frame in self.microphone.frames():
            await self._session.send_audio(frame)

    async def _play(self) -> None:
        """The loudspeaker, which tells the SDK what it played, as its guide asks for."""
        told: dict[str, int] = {}
        while True:
            await asyncio.sleep(_TICK_MS / 1000)
            for turn in self.turns:
                new_ms = turn.played_ms - told.get(turn.item_id, 0)
                if new_ms > 0 and turn.stopped_ms < 0:
                    sound = bytes(new_ms * BYTES_PER_MS)
                    self._tracker.on_play_bytes(turn.item_id, 0, sound)
                    told[turn.item_id] = turn.played_ms

    async def _listen(self) -> None:
        self._history = []
        async for event in self._session:
            match event.type:
                case "raw_model_event":
                    self._raw(event.data)
                case "history_updated":
                    self._history = event.history
                case "history_added":
                    self._history = [*self._history, event.item]
                case "error":
                    self.faults.append(str(event.error))

    def _raw(self, event: object) -> None:
        if event.type == "raw_server_event":
            self.notice(json.loads(json.dumps(event.data)))
        elif event.type == "audio_interrupted":
            self.stop_loudspeaker()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    go(AgentsPython)
