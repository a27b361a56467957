"""The responses of a call: which event of the chain is due when.

Two clocks meet here. The engine generates faster than the loudspeaker plays; the documented order
puts `output_audio_buffer.started` before the first word of the transcript. So words wait for the
first sample, and a turn that is generated to its end before it is heard waits with its closing,
and the turn after it waits behind it. Where sound comes inside of events, a response is open until
its last sample was sent.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Literal, TypeAlias

from agent.errors import RequestError
from agent.realtime.events import Event, error_event, new_id
from agent.realtime.items import Items, SpokenItem, ToolCallItem
from agent.realtime.limits import Limits
from agent.realtime.response import Asked, Response, Status, StopReason
from agent.types import SPEECH_RATE_HZ, Interrupt, SessionSettings, ToolCalled, TurnEnded, Wire

Step: TypeAlias = Callable[[], list[Event]]
ClearReason: TypeAlias = Literal["turn_detected", "client_cancelled"]


class Responses:
    """All responses that may still be generated or played; older ones are forgotten."""

    def __init__(self, items: Items, limits: Limits, wire: Wire) -> None:
        self._items = items
        self._limits = limits
        self._wire = wire
        self.conversation_id = new_id("conv")
        self._by_turn: OrderedDict[int, Response] = OrderedDict()
        self._active: Response | None = None
        self._playing: Response | None = None
        self._newest_turn = 0
        self._held: deque[tuple[int, Step]] = deque()
        self._calls: deque[tuple[ToolCalled, SessionSettings]] = deque()
        self.asked = Asked()
        """What the `response.create` said that asked for the next response."""

    @property
    def active(self) -> Response | None:
        """The response that is not done yet, if there is one."""
        return self._active

    @property
    def playing(self) -> Response | None:
        """The response whose sound is being played, if there is one."""
        return self._playing

    @property
    def writing(self) -> Response | None:
        """The response that goes out as text alone, if there is one."""
        active = self._active
        return active if active is not None and active.item.shape == "text" else None

    @property
    def newest_turn(self) -> int:
        """The number of the last turn that started; 0 before the first."""
        return self._newest_turn

    def pending_sound(self) -> bool:
        """Whether there is sound queued or playing."""
        return any(response.pending_sound for response in self._by_turn.values())

    def last(self) -> Response | None:
        """The newest response; None before the first."""
        return next(reversed(self._by_turn.values()), None)

    def find(self, item_id: str, response_id: str) -> Response | None:
        """The response of that id, or whose message has that id."""
        kept = self._by_turn.values()
        return next((one for one in kept if item_id == one.item.id or response_id == one.id), None)

    def to_cancel(self, response_id: str | None) -> Response:
        """The active response, if it is the one named; else `response_cancel_not_active`."""
        active = self._active
        if active is None or response_id not in (None, active.id):
            raise RequestError(
                "Cancellation failed: no such response is in progress.",
                param="response_id" if response_id is not None else None,
                code="response_cancel_not_active",
            )
        return active

    # ---- what the engine says -----------------------------------------------------------------

    def started(self, turn: int, settings: SessionSettings) -> list[Event]:
        """The agent begins to speak; a turn still open is given up."""
        return self._in_order(turn, lambda: self._start(turn, settings))

    def text(self, turn: int, text: str) -> list[Event]:
        """A piece of what the agent says."""
        return self._in_order(turn, lambda: self._say(turn, text))

    def sound(self, turn: int, end_samples: int) -> list[Event]:
        """The turn has sound up to `end_samples` (24 kHz)."""
        return self._in_order(turn, lambda: self._sound(turn, end_samples))

    def ended(self, end: TurnEnded) -> list[Event]:
        """Nothing more will be generated for the turn."""
        return self._in_order(end.turn, lambda: self._end(end))

    def tool_called(self, call: ToolCalled, settings: SessionSettings) -> list[Event]:
        """The agent calls a function within its turn, or beside all turns.

        Beside them it is a response of its own, as soon as no other is open; beyond
        `limits.max_waiting_calls` the newest is not made, and an error says so.
        """
        if call.turn:
            return self._in_order(call.turn, lambda: self._call_tool(call))
        if len(self._calls) >= self._limits.max_waiting_calls:
            message = f"The function '{call.name}' is not called: too many calls wait already."
            return [error_event(message, kind="server_error", code="too_many_function_calls")]
        self._calls.append((call, settings))
        return self._release()

    # ---- what the loudspeaker does ------------------------------------------------------------

    def playout_started(self, turn: int) -> list[Event]:
        """The first sample of the turn is on its way."""
        events = self._drop_waiting_before(turn)
        response = self._by_turn.get(turn)
        if response is None or response.buffer == "stopped":
            return events
        response.drained = False
        if response.buffer == "playing":
            return events
        if self._playing is not None:
            events += self._stop(self._playing)
        return events + self._start_playing(response) + self._release()

    def speech_sent(self, turn: int, data: bytes) -> list[Event]:
        """Sound of the turn goes to the client inside of an event.

        Nothing of a response that is done: its client has closed that book.
        """
        events = self.playout_started(turn)
        response = self._by_turn.get(turn)
        if response is None or response.closed or response.item.shape != "audio" or not data:
            return events
        return [*events, response.audio_delta(data)]

    def playout_drained(self, turn: int) -> list[Event]:
        """The queue ran empty; reported once nothing more can come."""
        response = self._by_turn.get(turn)
        if response is None or response.buffer != "playing":
            return []
        response.drained = True
        if response.closed:
            return self._stop(response)
        if self._wire == "websocket" and response.ended is not None:
            return self._complete(response) + self._release()
        return []

    def playout_cleared(self, turn: int, heard_ms: int, reason: ClearReason) -> list[Event]:
        """All that was queued is dropped; the user heard `heard_ms` of `turn`, and nothing of
        the turns behind it."""
        events = self._drop_waiting_before(turn)
        events += self._clear(turn, heard_ms, reason)
        while self._active is not None and self._active.buffer == "empty":
            self._active.lost_ms = self._active.item.generated_ms
            if not self._active.waits:
                break
            events += self._clear(self._active.turn, 0, reason)
        return events

    def heard(self, turn: int, heard_ms: int) -> None:
        """So much of `turn` has sounded by now, all of those before it, of later ones nothing."""
        for response in self._by_turn.values():
            if response.pending_sound and response.turn >= turn:
                response.item.sounded_ms = max(0, heard_ms) if response.turn == turn else 0

    # ---- what the client or a failure does ----------------------------------------------------

    def cancel(self, response: Response) -> list[Event]:
        """The client wants no more of it; what is queued may play out."""
        return self._close(response, "cancelled", "client_cancelled") + self._release()

    def truncate(self, item: SpokenItem, end_ms: int) -> list[Interrupt]:
        """The client heard no more than `end_ms` of `item`: cuts it there, within what there is.

        What the engine must be told: nothing of a turn before the last, whose answer it knows
        already, and nothing where this takes no sound away.
        """
        known_ms = item.cut_ms
        end_ms = item.cut(end_ms)
        response = self.last()
        if response is None or response.item is not item:
            return []
        generated = response.closed or response.ended is not None
        bound_ms = item.generated_ms if generated and known_ms is None else known_ms
        if bound_ms is not None and end_ms >= bound_ms:
            return []
        return [Interrupt(response.turn, end_ms)]

    def fail(self, code: str | None) -> list[Event]:
        """The engine is gone; nothing follows."""
        self._held.clear()
        if self._active is None:
            return []
        self._active.error_code = code
        return self._close(self._active, "failed", None)

    # ---- order --------------------------------------------------------------------------------

    def _in_order(self, turn: int, step: Step) -> list[Event]:
        """Do `step` now, or after the turn before it is done."""
        active = self._active
        if active is None or not self._must_wait(turn):
            return step() + self._release()
        self._held.append((turn, step))
        if len(self._held) <= self._limits.max_waiting:
            return []
        return self._complete(active) + self._release()

    def _must_wait(self, turn: int) -> bool:
        active = self._active
        return active is not None and active.waits and turn > active.turn

    def _release(self) -> list[Event]:
        events: list[Event] = []
        while self._held and not self._must_wait(self._held[0][0]):
            _, step = self._held.popleft()
            events += step()
        while self._calls and self._active is None and not self._held:
            events += self._call_beside(*self._calls.popleft())
        return events

    def _drop_waiting_before(self, turn: int) -> list[Event]:
        """Turns are played in order: one that still waits when a later one plays was sent to its
        end, or dropped if none of it was."""
        events: list[Event] = []
        while self._active is not None and self._must_wait(turn):
            if self._active.buffer == "playing":
                events += self._complete(self._active) + self._release()
            else:
                events += self._clear(self._active.turn, 0, "turn_detected")
        return events

    # ---- steps --------------------------------------------------------------------------------

    def _start(self, turn: int, settings: SessionSettings) -> list[Event]:
        if turn <= self._newest_turn:
            return []
        self._newest_turn = turn
        events: list[Event] = []
        if self._active is not None:
            events += self._close(self._active, "cancelled", "turn_detected")
        asked, self.asked = self.asked, Asked()
        response = self._new_response(turn, asked.applied(settings))
        response.metadata = asked.metadata
        if response.settings.output_modalities == ("text",):
            response.item.shape = "text"
        self._keep(response)
        return [*events, response.created()]

    def _new_response(self, turn: int, settings: SessionSettings) -> Response:
        item = SpokenItem(new_id("item"), self._limits)
        return Response(turn, item, settings, self.conversation_id, self._wire)

    def _keep(self, response: Response) -> None:
        self._active = self._by_turn[response.turn] = response
        if len(self._by_turn) > self._limits.max_responses:
            _, forgotten = self._by_turn.popitem(last=False)
            forgotten.silence()
            self._forget_playing(forgotten)

    def _open(self, turn: int) -> Response | None:
        """The active response if it is that turn's and still being generated."""
        active = self._active
        if active is None or active.turn != turn or active.ended is not None:
            return None
        return active

    def _say(self, turn: int, text: str) -> list[Event]:
        response = self._open(turn)
        if response is None or not text:
            return []
        events = self._announce(response)
        response.item.say(text)
        return [*events, response.delta(text)] if response.live else events

    def _announce(self, response: Response) -> list[Event]:
        """The message joins the conversation with its first word or sound."""
        if response.has_message:
            return []
        events = response.message_added(self._items.add(response.item))
        return [*events, response.part_added()] if response.item.shape == "text" else events

    def _sound(self, turn: int, end_samples: int) -> list[Event]:
        response = self._open(turn)
        if response is None:
            return []
        item = response.item
        item.generated_ms = max(item.generated_ms, end_samples * 1000 // SPEECH_RATE_HZ)
        response.drained = False
        return self._decide_audio(response)

    def _end(self, end: TurnEnded) -> list[Event]:
        response = self._open(end.turn)
        if response is None:
            return []
        response.ended, response.usage = end.reason, end.usage
        dropped = 0 < response.item.generated_ms <= response.lost_ms
        if end.reason == "interrupted" or dropped:
            return self._close(response, "cancelled", "turn_detected")
        events = self._decide_text(response)
        if response.item.shape == "audio" and response.waits:
            return events
        return events + self._complete(response)

    def _clear(self, turn: int, heard_ms: int, reason: ClearReason) -> list[Event]:
        response = self._by_turn.get(turn)
        if response is None or response.buffer == "stopped":
            return []
        if response.closed and not response.pending_sound:
            return []
        response.silence()
        self._forget_playing(response)
        events = response.buffered("cleared")
        if response.item.shape == "text":
            return events + self._close(response, "cancelled", reason) + self._release()
        end_ms = response.item.cut(heard_ms)
        events += self._close(response, "cancelled", reason)
        events += response.truncated(end_ms)
        return events + self._release()

    def _call_tool(self, call: ToolCalled) -> list[Event]:
        response = self._open(call.turn)
        if response is None:
            return []
        item = ToolCallItem(new_id("item"), call.call_id, call.name, call.arguments)
        return response.tool_call(item, self._items.add(item))

    def _call_beside(self, call: ToolCalled, settings: SessionSettings) -> list[Event]:
        """A response that is nothing but this call."""
        response = self._new_response(0, settings)
        item = ToolCallItem(new_id("item"), call.call_id, call.name, call.arguments)
        events = [response.created(), *response.tool_call(item, self._items.add(item))]
        response.finish("completed")
        return [*events, response.finished()]

    def _start_playing(self, response: Response) -> list[Event]:
        events = [] if response.closed else self._decide_audio(response)
        response.buffer = "playing"
        self._playing = response
        events += response.buffered("started")
        if response.closed:
            return events
        if response.item.shape == "audio":
            events += [response.delta(text) for _, text in response.item.pieces]
        if response.ended is not None and not response.waits:
            events += self._complete(response)
        return events

    def _decide_audio(self, response: Response) -> list[Event]:
        """The first sound makes the content part an audio part."""
        if response.item.shape != "undecided":
            return []
        events = self._announce(response)
        response.item.shape = "audio"
        return [*events, response.part_added()]

    def _decide_text(self, response: Response) -> list[Event]:
        """A turn that ends without a sound was text."""
        item = response.item
        if item.shape != "undecided" or not item.pieces:
            return []
        item.shape = "text"
        return [response.part_added(), *(response.delta(text) for _, text in item.pieces)]

    def _complete(self, response: Response) -> list[Event]:
        if response.ended == "max_tokens":
            response.finish("incomplete", "max_output_tokens")
        else:
            response.finish("completed")
        self._active = None
        return response.closing() + self._late_stop(response)

    def _close(self, response: Response, status: Status, reason: StopReason | None) -> list[Event]:
        """`response.done` without the rest of the chain, as documented for a cancelled one."""
        if response.closed:
            return []
        response.finish(status, reason)
        if self._active is response:
            self._active = None
        return [response.finished(), *self._late_stop(response)]

    def _late_stop(self, response: Response) -> list[Event]:
        return self._stop(response) if response.drained else []

    def _stop(self, response: Response) -> list[Event]:
        self._forget_playing(response)
        if response.buffer != "playing":
            return []
        response.silence()
        return response.buffered("stopped")

    def _forget_playing(self, response: Response) -> None:
        if self._playing is response:
            self._playing = None
