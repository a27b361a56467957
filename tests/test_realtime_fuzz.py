"""Whatever a client sends, and however engine and playout take turns: the call goes on."""

import json
import random
from collections.abc import Callable

import pytest

from agent.chat_types import Answered, ChatDelta, ChatDone, ChatEvent, ChatToolCall
from agent.commands import Command
from agent.errors import CapacityError, RequestError
from agent.realtime import AnswerAside, Limits, RateLimit
from agent.realtime.obey import OBEY
from agent.types import (
    Abilities,
    EngineEvent,
    Failed,
    Paused,
    SessionSettings,
    ToolCalled,
    Transcription,
    TurnDetection,
    UserText,
    UserTextFailed,
    Wire,
)
from tests.rig.realtime_watch import Watched, kinds

EVERY_ABILITY = {
    "typed_text": True,
    "pictures": True,
    "recordings": True,
    "tools": True,
    "transcription": True,
}
ABLE_TO_ALL = Abilities(
    duplex=True, speech=True, side_tools=True, out_of_band=True, **EVERY_ABILITY
)
WIRES: tuple[Wire, ...] = ("webrtc", "websocket")
FIELDS = [
    "type", "event_id", "session", "audio", "input", "output", "turn_detection", "threshold",
    "voice", "instructions", "item", "id", "role", "content", "text", "item_id", "audio_end_ms",
    "content_index", "previous_item_id", "response", "response_id", "metadata", "tools",
    "input", "output_modalities", "voice_agent", "eagerness", "mode", "on", "rtp_timestamp",
    "at_ms", "call_id", "__class__", "format", "rate", "transcription", "tool_choice", "name",
    "parameters", "arguments", "prompt", "tracing", "truncation", "include", "reasoning", "speed",
    "max_output_tokens", "idle_timeout_ms", "modalities", "input_audio_format", "sample_rate_hz",
    "transcript", "image_url", "detail", "played_ms", "committed_ms", "truncate", "conversation",
]  # fmt: skip
VALUES: list[object] = [
    None, True, False, 0, -1, 1, 7.5, 1e300, 2**53, 2**70, "", "root", "auto", "none", "audio",
    "text", "message", "user", "server_vad", "input_text", "function_call_output", "realtime",
    "\x00", "\ud800", "é" * 50, "x" * 5000, [], {}, [[]], [{}], ["audio"], ["text"],
    "semantic_vad", "high", "audio/pcm", "audio/pcmu", 24000, "pcm16", "inf", "AAAA", "====",
    "input_audio", "input_image", "output_audio", "data:image/png;base64,AAAA", "function_call",
    "assistant", "system", "call_1", "function", {"type": "function", "name": "f"},
    [{"type": "function", "name": "f"}], [{"type": "input_text", "text": "x"}],
    [{"type": "input_audio", "audio": "AAAA"}], "required", "side", "item_reference",
    {"conversation": "none", "output_modalities": ["text"], "instructions": "x"},
]  # fmt: skip


def value(dice: random.Random, depth: int) -> object:
    """Anything that JSON can say, out of the words that the protocol knows."""
    if depth == 0 or dice.random() < 0.5:
        return dice.choice(VALUES)
    if dice.random() < 0.2:
        return [value(dice, depth - 1) for _ in range(dice.randrange(3))]
    names = dice.choices(FIELDS, k=dice.randrange(4))
    return {name: value(dice, depth - 1) for name in names}


def client_message(dice: random.Random, known_ids: list[str]) -> str | bytes:
    """A client event that is more or less wrong."""
    fields = {name: value(dice, 3) for name in dice.choices(FIELDS, k=dice.randrange(5))}
    if known_ids and dice.random() < 0.5:
        fields["item_id"] = dice.choice(known_ids)
    if dice.random() < 0.9:
        fields["type"] = dice.choice(list(OBEY))
    text = json.dumps(fields)
    mutation = dice.random()
    if mutation < 0.05:
        return text.encode()
    if mutation < 0.15:
        at = dice.randrange(len(text))
        return text[:at] + dice.choice('{}[]",:\x00\\9') + text[at + 1 :]
    return text


def ids_of(call: Watched) -> list[str]:
    """Items that the client has heard of."""
    return [e["item"]["id"] for e in call.events if e["type"] == "conversation.item.added"][-50:]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("seed", range(4))
def test_no_message_breaks_the_call(seed: int, wire: Wire) -> None:
    dice = random.Random(seed)
    limits = Limits(max_items=20, max_item_pictures=1)
    call = Watched(abilities=ABLE_TO_ALL, limits=limits, wire=wire)
    call.spoken(1, ("One ", 500), ("two", 500))
    told = 0
    for number in range(500):
        known = ids_of(call) if number % 10 == 0 else []
        reaction = call.call.receive(client_message(dice, known), dice.randrange(-1, 10**6))
        told += len(call.take(reaction))
    assert told > 350  # of 500: broken playout reports, one in fifteen, are never answered
    assert "error" in kinds(call.events)
    call.finish()
    assert kinds(call.send("session.update", session={}))[-1] == "session.updated"


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("seed", range(3))
def test_no_session_breaks_the_call_and_each_one_told_can_be_sent_again(
    seed: int, wire: Wire
) -> None:
    """Sections are filled by chance, each field with what may or may not fit it."""
    dice = random.Random(seed)
    call = Watched(abilities=ABLE_TO_ALL, wire=wire)
    taken = 0
    for _ in range(400):
        session = {name: value(dice, 2) for name in dice.choices(FIELDS, k=2)}
        session["audio"] = {
            way: {name: value(dice, 1) for name in dice.choices(FIELDS, k=2)}
            for way in ("input", "output")
        }
        if "error" in kinds(call.send("session.update", session=session)):
            continue
        taken += 1
        before = call.call.settings
        again = kinds(call.send("session.update", session=call.call.session))
        assert again == ["session.updated"] and call.call.settings == before, session
    assert taken > 10


class Party:
    """Engine, playout and user by chance, but each within its own rules."""

    def __init__(self, seed: int, wire: Wire) -> None:
        self.dice = random.Random(seed)
        able = {name: self.dice.random() < 0.7 for name in EVERY_ABILITY}
        settings = SessionSettings(
            model="echo",
            transcription=self.dice.choice([None, Transcription("whisper-1")]),
            turn_detection=TurnDetection(idle_timeout_ms=self.dice.choice([None, 5000])),
        )
        self.call = Watched(
            abilities=Abilities(duplex=True, speech=True, out_of_band=True, **able),
            settings=settings,
            limits=Limits(max_items=30, max_waiting=40, max_waiting_calls=3),
            wire=wire,
            allowance=self.allowance,
        )
        self.turn = 0
        self.ended = True
        self.queue: list[int] = []  # turns with sound, the first is playing or about to
        self.playing = False
        self.over: set[int] = set()

    def step(self) -> None:
        """One thing happens."""
        happenings: list[Callable[[], object]] = [
            self.speak, self.speak, self.speak, self.end, self.play, self.play, self.drain,
            self.user, self.barge_in, self.client, self.aside, self.listen, self.send_sound,
            self.send_sound, self.refuse, self.server, self.out_of_band,
        ]  # fmt: skip
        self.dice.choice(happenings)()

    def speak(self) -> None:
        if self.ended:
            self.turn += 1
            self.ended = False
            self.call.start(self.turn)
        self.call.text(self.turn, self.dice.choice(["la ", "li ", ""]))
        if self.dice.random() < 0.7:
            self.call.sound(self.turn, self.dice.randrange(1, 900))
            if self.turn not in self.queue and self.turn not in self.over:
                self.queue.append(self.turn)

    def end(self) -> None:
        self.call.end(self.turn, self.dice.choice(["completed", "interrupted", "max_tokens"]))
        self.ended = True

    def play(self) -> None:
        if self.queue and not self.playing:
            self.playing = True
            self.call.take(self.call.call.playout_started(self.queue[0]))

    def send_sound(self) -> None:
        if self.queue and self.playing and self.call.wire == "websocket":
            self.call.sent(self.queue[0], self.dice.randbytes(self.dice.randrange(5)))

    def drain(self) -> None:
        if self.playing and (self.queue[0] != self.turn or self.ended):
            self.playing = False
            self.call.take(self.call.call.playout_drained(self.queue.pop(0)))

    def barge_in(self) -> None:
        if not self.queue:
            return
        reason = self.dice.choice(["turn_detected", "client_cancelled"])
        played = self.dice.randrange(900) if self.playing else 0
        self.over.update(self.queue)
        turn, self.queue, self.playing = self.queue[0], [], False
        self.call.take(self.call.call.playout_cleared(turn, played, reason))

    def listen(self) -> None:
        if self.queue:
            self.call.call.heard(self.queue[0], self.dice.randrange(-100, 2000))

    def user(self) -> None:
        at = self.dice.randrange(10**6)
        speech = self.call.call.speech_started, self.call.call.speech_ended
        self.call.take(self.dice.choice(speech)(at))

    def server(self) -> None:
        at = self.dice.randrange(10**6)
        self.call.take(self.call.call.idle_timed_out(at, at + 99))

    def allowance(self) -> list[RateLimit]:
        """Of a client whose key has a limit, and now and then of one that has none."""
        left = self.dice.randrange(10)
        return [RateLimit("tokens", 9, left, 0.5)] if left else []

    def client(self) -> None:
        requests = ["response.cancel", "response.create", "conversation.item.retrieve"]
        others = ["conversation.item.truncate", "voice_agent.resume", "playback.ack"]
        kind = self.dice.choice([*requests, *others, "conversation.item.create"])
        fields: dict[str, object] = {"played_ms": self.dice.randrange(3000)}
        if kind == "conversation.item.create":
            fields = {"item": self.dice.choice(HISTORY)}
        elif kind.startswith(("conversation", "playback")):
            ids = ids_of(self.call)
            known = self.dice.choice(ids) if ids else "none"
            fields |= {"item_id": known, "audio_end_ms": 10, "truncate": self.dice.random() < 0.5}
        self.call.send(kind, **fields)

    def out_of_band(self) -> None:
        """Something is asked beside the conversation, answered piece by piece, or given up."""
        asked = {"conversation": "none", "output_modalities": ["text"], "instructions": "x"}
        if self.dice.random() < 0.3:
            self.call.send("response.create", response=asked)
        begun = [one.response_id for one in self.call.actions if isinstance(one, AnswerAside)]
        if not begun:
            return
        response_id = self.dice.choice(begun[-6:])
        if self.dice.random() < 0.1:
            self.call.send("response.cancel", response_id=response_id)
        events: list[ChatEvent] = [
            ChatDelta("la "),
            ChatToolCall("chat_1", "f", "{}"),
            ChatDone(self.dice.choice(["stop", "length", "tool_calls"]), 3, 2),
            Failed(self.dice.choice([RequestError("no"), KeyError("no")])),
        ]
        answered = Answered(response_id, self.dice.choice(events))
        self.call.take(self.call.call.engine(answered))

    def refuse(self) -> None:
        """The engine refuses something that it was told, be it long ago."""
        commands = [action for action in self.call.actions if isinstance(action, Command)]
        if commands:
            error = self.dice.choice([RequestError("no"), CapacityError("no", retry_after_s=1)])
            self.call.take(self.call.call.failed(error, self.dice.choice(commands)))

    def aside(self) -> None:
        if self.dice.random() < 0.3:
            self.call.engine(Paused("by chance"))
        turn = self.dice.choice([0, self.turn])
        ids = ids_of(self.call)
        item_id = self.dice.choice(ids) if ids else ""
        events: list[EngineEvent] = [
            UserText(item_id, "hm"),
            UserTextFailed(item_id, "mumbled"),
            ToolCalled(turn, "call_1", "f", "{}"),
        ]
        self.call.engine(self.dice.choice(events))


HISTORY: list[dict[str, object]] = [
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "4"},
    {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAA="}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("seed", range(40))
def test_any_run_of_events_keeps_the_documented_order(seed: int, wire: Wire) -> None:
    party = Party(seed, wire)
    for _ in range(120):
        party.step()
    party.call.finish()
    assert "response.done" in kinds(party.call.events)
