"""Functions for a shop's voice agent: `voice-agent serve --tools examples/shop_tools.py`.

The `echo` engine calls them as typed: `/opening_hours {"day": "Sunday"}`.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from agent.tools import ToolContext, ToolError, tool

Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
STOCK = {"apples": 40, "bread": 3, "milk": 0}


@tool
def opening_hours(day: Day, holiday: bool = False) -> str:
    """When the shop is open.

    Args:
        day: The day of the week.
        holiday: Whether that day is a public holiday.
    """
    if holiday or day == "Sunday":
        return "closed all day"
    return "open from 9 to 14" if day == "Saturday" else "open from 9 to 18"


@dataclass
class Stock:
    """What there is of an article."""

    article: str
    pieces: int


@tool(timeout_s=2)
async def stock(article: Annotated[str, "What the customer wants, in the plural."]) -> Stock:
    """How many pieces of an article are in the shop now."""
    await asyncio.sleep(0)  # here one would ask the till
    name = article.strip().lower()
    if name not in STOCK:
        raise ToolError(f"this shop sells no {name}")
    return Stock(name, STOCK[name])


@tool
def leave_note(text: str, context: ToolContext) -> str:
    """Leave a note for the shopkeeper, such as a wish or a telephone number."""
    now = datetime.now(UTC).isoformat(timespec="minutes")
    with open("notes.txt", "a", encoding="utf-8") as notes:
        notes.write(f"{now} {context.call_id}: {text}\n")
    return "noted"
