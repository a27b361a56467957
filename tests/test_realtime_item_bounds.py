"""How much text the items of a call may hold: beyond it the oldest are forgotten."""

import pytest

from agent.realtime.items import (
    Item,
    Items,
    MessageItem,
    SpokenItem,
    ToolCallItem,
    ToolResultItem,
    UserSpeechItem,
)
from agent.realtime.limits import Limits
from tests.rig.realtime_watch import Watched

LIMITS = Limits(max_items_chars=100)


def message(item_id: str, chars: int) -> MessageItem:
    return MessageItem(item_id, "user", ({"text": "x"}, {"text": "x" * (chars - 1)}))


def kept(items: Items, ids: str) -> str:
    return "".join(one for one in ids if one in items)


def test_the_oldest_go_as_many_as_are_needed_and_the_newest_stays() -> None:
    items = Items(LIMITS)
    for item_id, chars in (("a", 40), ("b", 40), ("c", 20)):
        items.add(message(item_id, chars))
    assert kept(items, "abc") == "abc"
    items.add(message("d", 50))
    assert kept(items, "abcd") == "cd"
    items.add(message("e", 1000))
    assert kept(items, "abcde") == "e"
    items.add(message("f", 1), after="root")
    assert kept(items, "abcdef") == "f"


def test_what_is_deleted_makes_room() -> None:
    items = Items(LIMITS)
    for item_id in "ab":
        items.add(message(item_id, 50))
    items.remove("b")
    items.add(message("c", 50))
    assert kept(items, "abc") == "ac"


@pytest.mark.parametrize(
    "long",
    [
        ToolCallItem("long", "call", "name", "x" * 90),
        ToolResultItem("long", "call", "x" * 90),
        UserSpeechItem("long", 1.0, "x" * 90),
        message("long", 90),
    ],
)
def test_text_of_every_kind_counts(long: Item) -> None:
    items = Items(LIMITS)
    items.add(long)
    items.add(message("a", 11))
    assert "long" not in items and "a" in items


def test_what_was_said_and_written_down_since_counts() -> None:
    items = Items(LIMITS)
    said, heard = SpokenItem("said", LIMITS), UserSpeechItem("heard")
    items.add(said)
    items.add(heard)
    said.say("x" * 60)
    heard.transcript = "x" * 60
    items.add(message("a", 1))
    assert "said" not in items and "heard" in items


def test_a_client_that_restores_a_long_history_keeps_its_end() -> None:
    # The names of parts are kept, too.
    call = Watched(limits=Limits(max_items_chars=10 * len("input_text" + "x" * 100)))
    for number in range(20):
        part = {"type": "input_text", "text": "x" * 100}
        item = {"id": f"item_{number}", "type": "message", "role": "user", "content": [part]}
        call.send("conversation.item.create", item=item)
    call.send("conversation.item.retrieve", item_id="item_9")
    assert call.error()["code"] == "item_retrieve_invalid_item_id"
    for number in range(10, 20):
        call.send("conversation.item.retrieve", item_id=f"item_{number}")
        assert call.last("conversation.item.retrieved")["item"]["id"] == f"item_{number}"
