"""PyPI `pipecat-ai`: `OpenAIRealtimeLLMService` in a pipeline with a microphone and a loudspeaker.

The service shows nothing of what comes off the wire, so what happened is read from its frames,
from its two event handlers and from the context that its aggregators write.
"""

import asyncio
import time
from collections.abc import Callable

from loguru import logger
from PIL import Image
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InputImageRawFrame,
    InterruptionFrame,
    LLMMessagesAppendFrame,
    LLMUpdateSettingsFrame,
    OutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.realtime.events import SessionProperties
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies
from pipecat.workers.runner import WorkerRunner
from scenario import BYTES_PER_MS, RATE_HZ, TOOL, TOOL_RESULT, Client, go

_SOUND = TransportParams(
    audio_in_enabled=True,
    audio_in_sample_rate=RATE_HZ,
    audio_out_enabled=True,
    audio_out_sample_rate=RATE_HZ,
    audio_out_end_silence_secs=0,
)


class MicrophoneInput(BaseInputTransport):
    """The client's microphone as the pipeline reads it."""

    def __init__(self, client: Client) -> None:
        super().__init__(_SOUND)
        self._client = client
        self._speaking = None

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        self._speaking = self.create_task(self._speak())

    async def stop(self, frame: EndFrame) -> None:
        await self._hush()
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        await self._hush()
        await super().cancel(frame)

    async def _hush(self) -> None:
        if self._speaking:
            await self.cancel_task(self._speaking)
            self._speaking = None

    async def _speak(self) -> None:
        async for sound in self._client.microphone.frames():
            await self.push_audio_frame(InputAudioRawFrame(sound, RATE_HZ, 1))


class Loudspeaker(BaseOutputTransport):
    """Plays in real time, into nothing."""

    def __init__(self) -> None:
        super().__init__(_SOUND)
        self.played_ms = 0
        self._due_s = 0.0

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        length_ms = len(frame.audio) / BYTES_PER_MS
        self._due_s = max(self._due_s, time.monotonic()) + length_ms / 1000
        await asyncio.sleep(max(0.0, self._due_s - time.monotonic()))
        self.played_ms += length_ms
        return True


class Tap(FrameProcessor):
    """Shows `passed` what passes by; other frames can be let in there."""

    def __init__(self, passed: Callable[[Frame], None]) -> None:
        super().__init__()
        self._passed = passed

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self._passed(frame)
        await self.push_frame(frame, direction)


class Pipecat(Client):
    sees_cuts = False

    async def connect(self) -> None:
        base = self.given.base.replace("http", "ws", 1)
        tools = [{"type": "function", "name": TOOL, "parameters": {"type": "object"}}]
        self._properties = SessionProperties(instructions="Be short.", tools=tools)
        self._service = OpenAIRealtimeLLMService(
            api_key=self.given.key,
            base_url=f"{base}/v1/realtime",
            settings=OpenAIRealtimeLLMService.Settings(session_properties=self._properties),
        )
        self._service.register_function(TOOL, self._look_up)
        self._service.add_event_handler("on_conversation_item_created", self._created)
        self._service.add_event_handler("on_conversation_item_updated", self._updated)
        self._context = LLMContext()
        # As the service recommends; left to itself the pair loads a model for turns first.
        turns = LLMUserAggregatorParams(user_turn_strategies=ExternalUserTurnStrategies())
        pair = LLMContextAggregatorPair(self._context, user_params=turns)
        self._speaker = Loudspeaker()
        # What is typed goes in behind the user's half, which keeps such frames for itself.
        self._inlet = Tap(lambda _: None)
        parts = [MicrophoneInput(self), pair.user(), self._inlet, self._service]
        pipeline = Pipeline([*parts, Tap(self.passed), self._speaker, pair.assistant()])
        params = PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ)
        self._worker = PipelineWorker(pipeline, params=params, enable_rtvi=False)
        self._runner = WorkerRunner(handle_sigint=False)
        await self._runner.add_workers(self._worker)
        self._running = asyncio.create_task(self._runner.run())
        known = len(self.turns)
        await self.until(lambda: len(self.turns) > known, "first item")

    async def close(self) -> None:
        await self._worker.cancel()
        await self._running

    async def history(self) -> list[dict[str, object]]:
        messages = self._context.get_messages()
        return [
            {"role": each["role"], "text": str(each["content"])}
            for each in messages
            if each.get("content")
        ]

    async def retrieve(self, item_id: str) -> str | None:
        item = await self._service.retrieve_conversation_item(item_id)
        return "".join(part.transcript or "" for part in item.content)

    async def type_text(self, text: str) -> None:
        """What the pipeline appends has the role of a system message, which calls nothing: so the
        session demands a call."""
        await self._demand("required")
        message = {"role": "user", "content": text}
        await self._inlet.push_frame(LLMMessagesAppendFrame([message], run_llm=True))

    async def show_picture(self, picture: bytes) -> None:
        await self._demand("auto")
        with Image.open(self.given.picture) as opened:
            rgb = opened.convert("RGB")
            frame = InputImageRawFrame(image=rgb.tobytes(), size=rgb.size, format="RGB")
        await self._inlet.push_frame(frame)
        message = {"role": "user", "content": "What is this?"}
        await self._inlet.push_frame(LLMMessagesAppendFrame([message], run_llm=True))

    async def _demand(self, choice: str) -> None:
        properties = self._properties.model_copy(update={"tool_choice": choice})
        delta = OpenAIRealtimeLLMService.Settings(session_properties=properties)
        await self._inlet.push_frame(LLMUpdateSettingsFrame(delta=delta))

    async def _look_up(self, params: FunctionCallParams) -> None:
        self.calls.append({"name": params.function_name, "arguments": dict(params.arguments)})
        await params.result_callback(TOOL_RESULT)

    async def _created(self, service: object, item_id: str, item: object) -> None:
        if item.type == "message" and item.role == "assistant":
            self.turn_of(item_id)
            self._speaker.played_ms = 0

    async def _updated(self, service: object, item_id: str, item: object) -> None:
        if item is not None and item.type == "message" and item.role == "assistant":
            self.turn_of(item_id).status = item.status

    def passed(self, frame: Frame) -> None:
        match frame:
            case TTSAudioRawFrame() if self.turns:
                self.turns[-1].hear(frame.audio)
            case TTSTextFrame() if self.turns:
                self.turns[-1].text += frame.text
            case InterruptionFrame() if self.turns and self.turns[-1].stopped_ms < 0:
                self.turns[-1].stopped_ms = int(self._speaker.played_ms)
            case UserStoppedSpeakingFrame():
                self.user_turns += 1
            case ErrorFrame():
                self.faults.append(frame.error)


if __name__ == "__main__":
    logger.remove()
    go(Pipecat)
