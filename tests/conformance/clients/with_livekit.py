"""PyPI `livekit-plugins-openai`: `RealtimeModel` inside of an `AgentSession`, without a room.

The session does what it does in a room: it plays the answer through its own output, stops it when
the server hears the user, tells the server how much was played, and keeps the conversation.
"""

import asyncio
import logging
import time

from livekit import rtc
from livekit.agents import Agent, AgentSession, function_tool, llm
from livekit.agents.voice import io
from livekit.agents.voice.transcription import TranscriptSynchronizer
from livekit.plugins.openai.realtime import RealtimeModel
from PIL import Image
from scenario import RATE_HZ, TOOL, TOOL_RESULT, Client, go


class MicrophoneInput(io.AudioInput):
    """The client's microphone as the session reads it."""

    def __init__(self, client: Client) -> None:
        super().__init__(label="microphone")
        self._frames = client.microphone.frames()

    async def __anext__(self) -> rtc.AudioFrame:
        sound = await anext(self._frames)
        return rtc.AudioFrame(sound, RATE_HZ, 1, len(sound) // 2)


class Loudspeaker(io.AudioOutput):
    """Plays in real time, into nothing."""

    def __init__(self) -> None:
        super().__init__(
            label="loudspeaker",
            capabilities=io.AudioOutputCapabilities(pause=False),
            sample_rate=RATE_HZ,
        )
        self._began_s = 0.0
        self._captured_s = 0.0
        self._ending: asyncio.TimerHandle | None = None
        self.stopped_at_s = -1.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._captured_s:
            self._began_s = time.monotonic()
            self.on_playback_started(created_at=time.time())
        self._captured_s += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._captured_s and self._ending is None:
            left_s = self._began_s + self._captured_s - time.monotonic()
            self._ending = asyncio.get_running_loop().call_later(max(0.0, left_s), self._end)

    def clear_buffer(self) -> None:
        if self._captured_s:
            self.stopped_at_s = min(self._captured_s, time.monotonic() - self._began_s)
            self._end(interrupted=True)

    def _end(self, interrupted: bool = False) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        played_s = self.stopped_at_s if interrupted else self._captured_s
        self._captured_s = 0.0
        self.on_playback_finished(playback_position=played_s, interrupted=interrupted)


class Screen(io.TextOutput):
    """Where the words are shown: nowhere."""

    def __init__(self) -> None:
        super().__init__(label="screen", next_in_chain=None)

    async def capture_text(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass


class LiveKit(Client):
    _session: AgentSession

    async def connect(self) -> None:
        @function_tool(name=TOOL)
        async def look_up(key: str) -> str:
            """Look something up."""
            self.calls.append({"name": TOOL, "arguments": {"key": key}})
            return TOOL_RESULT

        model = RealtimeModel(base_url=f"{self.given.base}/v1", api_key=self.given.key)
        # Interruptions count from the first word on: there is no echo to get used to.
        self._session = AgentSession(llm=model, aec_warmup_duration=None)
        self._speaker = Loudspeaker()
        # In a room, too, words are kept as they are played.
        synchronizer = TranscriptSynchronizer(
            next_in_chain_audio=self._speaker, next_in_chain_text=Screen()
        )
        self._session.input.audio = MicrophoneInput(self)
        self._session.output.audio = synchronizer.audio_output
        self._session.output.transcription = synchronizer.text_output
        self._session.on("error", lambda event: self.faults.append(str(event.error)))
        known = len(self.events)
        await self._session.start(Agent(instructions="Be short.", tools=[look_up]), record=False)
        wire = self._session.current_agent.realtime_llm_session
        wire.on("openai_server_event_received", self.notice)
        wire.on("openai_client_event_queued", self._asked)
        await self.until(
            lambda: any(e["type"] == "session.updated" for e in self.events[known:]),
            "session.updated",
        )

    async def close(self) -> None:
        await self._session.aclose()

    def _asked(self, event: dict[str, object]) -> None:
        if event["type"] == "conversation.item.truncate":
            turn = self.turn_of(event["item_id"])
            turn.asked_ms = event["audio_end_ms"]
            turn.stopped_ms = int(self._speaker.stopped_at_s * 1000)

    async def history(self) -> list[dict[str, object]]:
        return [
            {"role": item.role, "text": item.text_content or ""}
            for item in self._session.history.items
            if item.type == "message"
        ]

    async def type_text(self, text: str) -> None:
        self._session.generate_reply(user_input=text)

    async def show_picture(self, picture: bytes) -> None:
        agent = self._session.current_agent
        context = agent.chat_ctx.copy()
        path = self.given.picture
        with Image.open(path) as opened:
            rgba = opened.convert("RGBA")
            frame = rtc.VideoFrame(*rgba.size, rtc.VideoBufferType.RGBA, bytes(rgba.tobytes()))
        context.add_message(role="user", content=[llm.ImageContent(image=frame)])
        await agent.update_chat_ctx(context)
        self._session.generate_reply()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    go(LiveKit)
