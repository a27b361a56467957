"""Out-of-band responses: beside the conversation, of which they leave no trace.

Each is told like any other response, but for `conversation.item.*`: its items join nothing. Several
may be under way, beside each other and beside the response that speaks; none of them is the active
one, and what the agent does is not their matter.
"""

from collections.abc import Mapping

from agent.chat_types import Answered, ChatDelta, ChatDone, ChatEvent, ChatToolCall
from agent.errors import CapacityError, QuotaError, RequestError
from agent.realtime.events import Event, new_id
from agent.realtime.items import SpokenItem, ToolCallItem
from agent.realtime.limits import Limits
from agent.realtime.response import Failure, Response
from agent.types import Failed, SessionSettings, Usage, Wire


class Asides:
    """Those of one call that are not done."""

    def __init__(self, limits: Limits, wire: Wire) -> None:
        self._limits = limits
        self._wire = wire
        self._open: dict[str, Response] = {}

    def __contains__(self, response_id: str | None) -> bool:
        return response_id in self._open

    def new(self, settings: SessionSettings, metadata: Mapping[str, str]) -> Response:
        """One that has not begun. `RequestError` when too many are under way."""
        if len(self._open) >= self._limits.max_asides:
            raise RequestError(
                f"{self._limits.max_asides} out-of-band responses are in progress already. Wait "
                "for a 'response.done', or cancel one, before the next.",
                code="too_many_out_of_band_responses",
            )
        item = SpokenItem(new_id("item"), self._limits, shape="text")
        return Response(0, item, settings, None, self._wire, metadata)

    def begin(self, response: Response) -> list[Event]:
        """It is asked for."""
        self._open[response.id] = response
        return [response.created()]

    def answered(self, answered: Answered) -> list[Event]:
        """The next of an answer; nothing of a response that is done."""
        response = self._open.get(answered.response_id)
        return [] if response is None else _without_items(self._take(response, answered.event))

    def cancel(self, response_id: str) -> list[Event]:
        """The client wants no more of one that is under way."""
        response = self._open.pop(response_id)
        response.finish("cancelled", "client_cancelled")
        return _without_items(response.closing())

    def fail(self, error: Exception) -> list[Event]:
        """None of them is answered any more."""
        failing = list(self._open.values())
        return [told for one in failing for told in _without_items(self._fail(one, error))]

    def _take(self, response: Response, event: ChatEvent) -> list[Event]:
        match event:
            case ChatDelta(text=text, reasoning=False) if text:
                return _say(response, text)
            case ChatToolCall(name=name, arguments=arguments):
                item = ToolCallItem(new_id("item"), new_id("call"), name, arguments)
                return response.tool_call(item, None)
            case ChatDone():
                return self._complete(response, event)
            case Failed(error=error):
                return self._fail(response, error)
        return []

    def _complete(self, response: Response, done: ChatDone) -> list[Event]:
        """A chat counts what it was shown as one, be it words, sounds or pictures."""
        response.usage = Usage(text_in=done.prompt_tokens, text_out=done.answer_tokens)
        if done.reason == "length":
            response.finish("incomplete", "max_output_tokens")
        else:
            response.finish("completed")
        del self._open[response.id]
        return response.closing()

    def _fail(self, response: Response, error: Exception) -> list[Event]:
        response.failure = _failure(error)
        response.finish("failed")
        del self._open[response.id]
        return response.closing()


def _say(response: Response, text: str) -> list[Event]:
    events: list[Event] = []
    if not response.has_message:
        events = [*response.message_added(None), response.part_added()]
    response.item.say(text)
    return [*events, response.delta(text)]


def _without_items(events: list[Event]) -> list[Event]:
    return [one for one in events if not str(one["type"]).startswith("conversation.")]


def _failure(error: Exception) -> Failure:
    """What a foreign exception says is for the log, not for the client."""
    match error:
        case RequestError():
            return Failure("invalid_request_error", error.code or "invalid_value", str(error))
        case QuotaError():
            return Failure("rate_limit_error", error.code or "rate_limit_exceeded", str(error))
        case CapacityError():
            return Failure("server_error", error.code or "no_capacity", str(error))
        case TimeoutError():
            return Failure("server_error", "timeout", "It was not answered in time.")
    return Failure("server_error", "engine_error", "The engine failed to answer.")
