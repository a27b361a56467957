"""`playback.ack`: a client says how much of a response it has played, in vLLM-Omni's spelling.

Whoever gets sound inside of events tells by it what no track can show. It is answered by
`playback.acknowledged`, whose `event` says how much of it counts.
"""

from agent.errors import RequestError
from agent.realtime.client_events import EXACT_INTEGER, MAX_ID_CHARS
from agent.realtime.events import server_event
from agent.realtime.fields import Fields
from agent.realtime.reaction import Action, HeardReport, Reaction
from agent.realtime.response import Response
from agent.realtime.state import CallState


def acknowledge(call: CallState, event: Fields) -> Reaction:
    """`playback.ack {item_id | response_id, played_ms, committed_ms?, truncate?}`.

    Without an id it is about the newest response. `truncate` says that no more of it will sound.
    """
    response = _response(call, event)
    if response is None or not response.has_message:
        raise RequestError(
            "There is no spoken response of that id; it may be forgotten.",
            param="item_id" if event.has("item_id") else "response_id",
            code="item_not_found",
        )
    played_ms = _ms(event, "played_ms")
    committed_ms = _ms(event, "committed_ms") if event.has("committed_ms") else played_ms
    committed_ms = min(committed_ms, response.item.generated_ms)
    cuts = event.flag("truncate", False)
    actions: list[Action] = [HeardReport(response.turn, committed_ms)]
    if cuts and response.item.shape == "audio":
        actions += call.truncate(response.item, committed_ms)
    acknowledged = {
        "item_id": response.item.id,
        "response_id": response.id,
        "played_ms": played_ms,
        "committed_ms": committed_ms,
        "truncate": cuts,
    }
    return call.tell([server_event("playback.acknowledged", event=acknowledged)], *actions)


def _response(call: CallState, event: Fields) -> Response | None:
    item_id = event.text("item_id", "", most=MAX_ID_CHARS)
    response_id = event.text("response_id", "", most=MAX_ID_CHARS)
    if not (item_id or response_id):
        return call.turns.last()
    return call.turns.find(item_id, response_id)


def _ms(event: Fields, field: str) -> int:
    return int(event.number(field, least=0, most=EXACT_INTEGER))
