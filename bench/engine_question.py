"""The question of `bench.engine side`: whether a function is to be called now, as a call asks it.

It is made by `agent.attendants.decision` of a conversation some turns long: all in writing but the
user's last words, which are heard, and three functions.
"""

import json
from typing import Any

import numpy as np

from agent.attendants.decision import decision_request
from agent.attendants.transcript import Entry
from agent.chat_types import ChatRequest, ChatToolCall
from agent.fleet.callers import Material
from agent.types import Tool

SOUND_S = 4
"""Of the user's last words."""
_LAST = "item_8"


def decision() -> ChatRequest:
    """Eight entries in writing, one of them a call with its result, and a ninth as sound."""
    return decision_request([*_written(), _heard()], _LAST, _TOOLS)


def _written() -> list[Entry]:
    call = ChatToolCall("call_1", "opening_hours", '{"shop": "Mill Lane", "day": "Saturday"}')
    result = '{"shop": "Mill Lane", "day": "Saturday", "opens": "09:30", "closes": "16:00"}'
    return [
        Entry("item_0", "user", "Hi, when is your shop in Mill Lane open this weekend?"),
        Entry("item_1", "assistant", "Give me a second, I am looking that up for you."),
        Entry("item_2", "assistant", call=call, result=result),
        Entry(
            "item_3",
            "assistant",
            "On Saturday we are open from half past nine until four in the afternoon, and on "
            "Sunday the shop is closed. Is there anything else that I can do for you?",
        ),
        Entry(
            "item_4",
            "user",
            "Yes, I ordered a kettle last week, the blue one, and have not heard anything since.",
        ),
        Entry(
            "item_5",
            "assistant",
            "I am sorry to hear that. Tell me the number of your order, and I can see where it "
            "is. You find it at the top of the message that we sent you when you paid.",
        ),
        Entry(
            "item_6",
            "user",
            "Wait, I have it here somewhere. It was two kettles by the way, one is for my sister, "
            "and hers could go straight to her place if that still works.",
        ),
        Entry("item_7", "assistant", "That works as long as the parcel has not left us."),
    ]


def _heard() -> Entry:
    material = Material(camera=False)
    seconds = [material.unit(index).audio for index in range(SOUND_S)]
    return Entry(_LAST, "user", sound=np.concatenate(seconds))


def _tool(name: str, description: str, required: tuple[str, ...], **fields: Any) -> Tool:
    schema = {"type": "object", "properties": fields, "required": list(required)}
    return Tool(name, description, json.dumps(schema))


_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NUMBER = {"type": "string", "description": "The order's number, two letters and six digits."}
_TOOLS = (
    _tool(
        "opening_hours",
        "When one of our shops is open on a day of the week.",
        ("shop", "day"),
        shop={"type": "string", "description": "The street that the shop is in."},
        day={"type": "string", "enum": list(_DAYS)},
    ),
    _tool(
        "order_status",
        "Where an order is and when it will arrive.",
        ("number",),
        number=_NUMBER,
        postcode={"type": "string", "description": "Of the address that it goes to, if known."},
    ),
    _tool(
        "change_delivery",
        "Send an order, or some of what is in it, to another address, if it has not left yet.",
        ("number", "address"),
        number=_NUMBER,
        address={"type": "string", "description": "Name, street, postcode and town."},
        items={"type": "array", "items": {"type": "string"}, "description": "All if left out."},
    ),
)
