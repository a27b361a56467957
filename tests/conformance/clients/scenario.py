"""What every Python client goes through: one call, told as JSON lines on stdout.

The programs beside this file run in an environment of their own, against a server that somebody
else started: `python with_….py --base http://… --key sk-… --speech hello.wav --out folder`. Each
line is `{"feature": …, "facts": {…}}` or `{"feature": …, "error": …}`; what is right is judged by
the test that reads them. All that the server said, where a client shows it, is kept as it came.
"""

import argparse
import asyncio
import base64
import json
import sys
import time
import traceback
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RATE_HZ = 24_000
BYTES_PER_MS = RATE_HZ * 2 // 1000
FRAME_MS = 40
PATIENCE_S = 20.0
"""How long anything may take on a machine that is busy."""
HEARD_BEFORE_S = 1.8
"""How much of the greeting is heard before it is talked over."""
TOOL = "look_up"
TOOL_COMMAND = '/look_up {"key": "colour"}'
TOOL_RESULT = "a very dark green"


@dataclass(slots=True)
class Turn:
    """One answer of the agent, as far as this client learned of it."""

    item_id: str = ""
    text: str = ""
    sound: bytearray = field(default_factory=bytearray)
    live: bool = False
    """Its sound comes as a track that plays by itself, not in events."""
    clock: Callable[[], float] = time.monotonic
    """Seconds; of a live one, those of the track."""
    began_s: float | None = None
    ended: bool = False
    """Of a live one: the server says that all of it has sounded."""
    stopped_ms: int = -1
    """What the loudspeaker had played when it was stopped; −1 while it was not."""
    asked_ms: int = -1
    """Where the client asked to cut it, if that can be seen."""
    cut_ms: int = -1
    """Where the server says that it is cut."""
    status: str = ""
    reason: str = ""

    @property
    def received_ms(self) -> int:
        return len(self.sound) // BYTES_PER_MS

    @property
    def played_ms(self) -> int:
        """What a loudspeaker without any delay of its own has played by now."""
        if self.stopped_ms >= 0:
            return self.stopped_ms
        if self.began_s is None:
            return 0
        since_ms = int((self.clock() - self.began_s) * 1000)
        return since_ms if self.live else min(self.received_ms, since_ms)

    @property
    def quiet(self) -> bool:
        """Whether nothing of it is left to be heard, for now."""
        if self.stopped_ms >= 0:
            return True
        return self.ended if self.live else self.played_ms >= self.received_ms

    def hear(self, sound: bytes) -> None:
        if self.stopped_ms < 0:
            if self.began_s is None:
                self.began_s = self.clock()
            self.sound += sound

    def stop(self) -> None:
        if self.stopped_ms < 0:
            self.stopped_ms = self.played_ms

    def facts(self) -> dict[str, object]:
        return {
            "text": self.text,
            "received_ms": self.received_ms,
            "stopped_ms": self.stopped_ms,
            "asked_ms": self.asked_ms,
            "cut_ms": self.cut_ms,
            "status": self.status,
            "reason": self.reason,
        }


class Microphone:
    """Silence in real time, and what `say` puts into it: PCM16, 24 kHz, mono."""

    def __init__(self) -> None:
        self._waiting = b""

    def say(self, sound: bytes) -> None:
        self._waiting += sound

    @property
    def speaking(self) -> bool:
        return bool(self._waiting)

    async def frames(self, frame_ms: int = FRAME_MS) -> AsyncIterator[bytes]:
        """A frame each `frame_ms`, for ever."""
        size = frame_ms * BYTES_PER_MS
        began_s, count = time.monotonic(), 0
        while True:
            piece, self._waiting = self._waiting[:size], self._waiting[size:]
            yield piece.ljust(size, b"\0")
            count += 1
            await asyncio.sleep(max(0.0, began_s + count * frame_ms / 1000 - time.monotonic()))


class Client:
    """One third-party client; the programs say what each of these means for theirs."""

    sees_cuts = True
    """Whether it shows where the server cut what was said."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.microphone = Microphone()
        self.turns: list[Turn] = []
        self.events: list[dict[str, Any]] = []
        self.calls: list[dict[str, object]] = []
        """Functions that were called on our side: name and arguments."""
        self.faults: list[str] = []
        """Errors that the client told its application about."""
        self.user_turns = 0
        self.session_id = ""
        self.tasks: list[asyncio.Task[None]] = []
        """What a program does meanwhile; one that fails ends the step."""
        self._by_item: dict[str, Turn] = {}
        self._by_response: dict[str, Turn] = {}

    # ---- what a program fills in --------------------------------------------------------------

    async def connect(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def history(self) -> list[dict[str, object]]:
        """Role and text of what the client itself holds, in order."""
        raise NotImplementedError

    async def retrieve(self, item_id: str) -> str | None:
        """The words of an item as the server holds them; None where the client cannot ask."""
        return None

    async def type_text(self, text: str) -> None:
        """Send `text` and ask for an answer."""
        raise NotImplementedError

    async def show_picture(self, picture: bytes) -> None:
        """Send a PNG and ask for an answer."""
        raise NotImplementedError

    def sounded_s(self) -> float:
        """How much sound of a track came so far: a server that gets no processor sends late."""
        raise NotImplementedError

    def sound_of(self, turn: Turn) -> bytes:
        """What was heard of `turn`, and perhaps more."""
        return bytes(turn.sound)

    async def end_tasks(self) -> None:
        tasks, self.tasks = self.tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what the server said -----------------------------------------------------------------

    def turn_of(self, item_id: str) -> Turn:
        turn = self._by_item.get(item_id)
        if turn is None:
            turn = self._by_item[item_id] = Turn(item_id)
            self.turns.append(turn)
        return turn

    def notice(self, event: dict[str, Any]) -> None:
        """One server event as it came off the wire."""
        self.events.append(event)
        match event["type"]:
            case "session.created":
                self.session_id = event["session"]["id"]
            case "input_audio_buffer.speech_started":
                self.stop_loudspeaker()
            case "input_audio_buffer.committed":
                self.user_turns += 1
            case "response.output_item.added" if event["item"]["type"] == "message":
                self._by_response[event["response_id"]] = self.turn_of(event["item"]["id"])
            case "response.output_audio.delta":
                self.turn_of(event["item_id"]).hear(base64.b64decode(event["delta"]))
            case "response.output_audio_transcript.delta":
                self.turn_of(event["item_id"]).text += event["delta"]
            case "conversation.item.truncated":
                self.turn_of(event["item_id"]).cut_ms = event["audio_end_ms"]
            case "response.done":
                self._done(event["response"])
            case "error" if event["error"].get("code") != "response_cancel_not_active":
                # Clients cancel what may be over by the time that the server reads of it.
                self.faults.append(json.dumps(event["error"]))
            case kind if kind.startswith("output_audio_buffer."):
                self._buffered(kind.rpartition(".")[2], event["response_id"])

    def stop_loudspeaker(self) -> None:
        """The user speaks: whatever plays is stopped, as all these clients do."""
        for turn in self.turns:
            if not turn.live and not (turn.status and turn.quiet):
                turn.stop()

    def _buffered(self, what: str, response_id: str) -> None:
        turn = self._by_response[response_id]
        if what == "started":
            turn.live, turn.clock, turn.began_s = True, self.sounded_s, self.sounded_s()
        elif what == "stopped":
            turn.ended = True
        else:
            turn.stop()

    def _done(self, response: dict[str, Any]) -> None:
        for item in response["output"]:
            if item["type"] == "message":
                turn = self.turn_of(item["id"])
                turn.status = response["status"]
                turn.reason = (response.get("status_details") or {}).get("reason", "")

    # ---- the scenario -------------------------------------------------------------------------

    async def until(self, met: Callable[[], object], what: str) -> None:
        """Poll: a client has no one place where all of its news arrive."""
        due_s = time.monotonic() + PATIENCE_S
        while not met():
            for task in self.tasks:
                if task.done() and not task.cancelled():
                    task.result()
            if time.monotonic() > due_s:
                raise TimeoutError(f"no {what} within {PATIENCE_S:.0f} s")
            await asyncio.sleep(0.02)

    async def answer(self, ask: Callable[[], Awaitable[None]], holds: str) -> Turn:
        """The turn, played to its end, that has `holds` in its words, asked for by `ask`."""
        known = len(self.turns)
        await ask()
        await self.until(
            lambda: any(holds in turn.text and turn.status for turn in self.turns[known:]),
            f"answer with {holds!r}",
        )
        turn = next(turn for turn in self.turns[known:] if holds in turn.text)
        await self.until(lambda: turn.quiet, "end of the answer")
        return turn


def tell(feature: str, **facts: object) -> None:
    """One line for the test."""
    sys.stdout.write(json.dumps({"feature": feature, "facts": facts}) + "\n")
    sys.stdout.flush()


def tell_fault(feature: str, error: BaseException) -> None:
    """A step that went wrong, and where."""
    told = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps({"feature": feature, "error": told}) + "\n")
    sys.stdout.flush()
    traceback.print_exception(error, file=sys.stderr)


def arguments() -> argparse.Namespace:
    """What the test says to a program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", required=True, help="http://host:port of the server")
    parser.add_argument("--key", required=True)
    parser.add_argument("--speech", type=Path, required=True, help="WAV, 24 kHz, mono, 16 bit")
    parser.add_argument("--picture", type=Path, required=True, help="PNG")
    parser.add_argument("--out", type=Path, required=True, help="folder for what was received")
    return parser.parse_args()


def read_wav(path: Path) -> bytes:
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.getnchannels()) == (RATE_HZ, 1)
        return file.readframes(file.getnframes())


def write_wav(path: Path, sound: bytes) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(sound)


class Journey:
    """The steps of one call, in order; a step that fails is told, and the next one is tried."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.given = client.given

    async def run(self) -> None:
        steps = ("connect", "interrupt", "answered", "tools", "picture", "history")
        try:
            for step in (*steps, "reconnect", "close"):
                if not await self._step(step) and step == "connect":
                    return
        finally:
            self._keep_events()

    async def _step(self, feature: str) -> bool:
        try:
            async with asyncio.timeout(PATIENCE_S * 1.5):
                await getattr(self, feature)()
        except Exception as error:  # noqa: BLE001 - whatever a foreign client raises is told
            tell_fault(feature, error)
            return False
        return True

    async def connect(self) -> None:
        began_s = time.monotonic()
        await self.client.connect()
        taken_s = round(time.monotonic() - began_s, 3)
        tell("connect", session=self.client.session_id, taken_s=taken_s)

    async def interrupt(self) -> None:
        """The server greets first: the user talks over it."""
        client = self.client
        await client.until(
            lambda: client.turns and client.turns[0].played_ms > HEARD_BEFORE_S * 1000, "greeting"
        )
        greeting = client.turns[0]
        client.microphone.say(read_wav(self.given.speech))
        await client.until(lambda: greeting.stopped_ms >= 0, "stop of the loudspeaker")
        await client.until(lambda: greeting.status, "end of the greeting")
        await client.until(lambda: greeting.cut_ms >= 0 or not client.sees_cuts, "cut")
        tell("interrupt", **greeting.facts())

    async def answered(self) -> None:
        """What was said over it is answered: it comes back."""
        client = self.client
        await client.until(lambda: not client.microphone.speaking, "end of the user's speech")
        await client.until(lambda: client.user_turns, "user's turn")
        tell("talk", user_turns=client.user_turns)
        await client.until(
            lambda: any("You spoke" in turn.text and turn.status for turn in client.turns), "answer"
        )
        turn = next(turn for turn in client.turns if "You spoke" in turn.text)
        await client.until(lambda: turn.quiet, "end of the answer")
        write_wav(self.given.out / "heard.wav", client.sound_of(turn))
        tell("answered", **turn.facts())

    async def history(self) -> None:
        greeting = self.client.turns[0]
        retrieved = await self.client.retrieve(greeting.item_id)
        items = await self.client.history()
        tell("history", items=items, retrieved=retrieved, full=greeting.text)

    async def tools(self) -> None:
        client = self.client
        turn = await client.answer(lambda: client.type_text(TOOL_COMMAND), TOOL_RESULT)
        tell("tools", calls=client.calls, said=turn.text)

    async def picture(self) -> None:
        client, picture = self.client, self.given.picture.read_bytes()
        turn = await client.answer(lambda: client.show_picture(picture), "pixels")
        tell("picture", said=turn.text)

    async def reconnect(self) -> None:
        """Leave and come back by the same object, or as its makers say."""
        client, before = self.client, self.client.session_id
        await client.close()
        self._keep_events()
        client.turns.clear()
        await client.connect()
        await client.until(lambda: client.turns and client.turns[0].played_ms, "second greeting")
        tell("reconnect", before=before, after=client.session_id)

    async def close(self) -> None:
        await self.client.close()
        tell("close", faults=self.client.faults)

    def _keep_events(self) -> None:
        """A file for each session: their order is checked for each."""
        events, self.client.events = self.client.events, []
        if events:
            count = len(list(self.given.out.glob("events_*.json")))
            (self.given.out / f"events_{count}.json").write_text(json.dumps(events))


def go(make: Callable[[argparse.Namespace], Client]) -> None:
    """Run the journey with the client that `make` makes."""
    asyncio.run(Journey(make(arguments())).run())
