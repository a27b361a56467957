"""A call in which something is asked out of band, whose answers the test gives."""

from typing import Any

from agent.chat_types import Answered, ChatDone, ChatEvent, ChatText, FinishReason
from agent.realtime import AnswerAside
from agent.realtime.question import Question
from agent.types import Abilities
from tests.rig.realtime_watch import Watched

ABLE = Abilities(
    duplex=True, speech=True, typed_text=True, pictures=True, recordings=True, out_of_band=True
)
WRITTEN = ["text"]


class Asking(Watched):
    """A call in which something is asked out of band."""

    def ask(self, **response: object) -> str:
        """Ask; the id of the response, which has begun."""
        usual = {"conversation": "none", "output_modalities": WRITTEN, "instructions": "Judge."}
        asked = usual | response
        created, *_ = self.send("response.create", response=asked)
        assert created["type"] == "response.created", created
        response_id: str = created["response"]["id"]
        return response_id

    def said(self, response_id: str, *events: ChatEvent) -> list[dict[str, Any]]:
        """The model says that; what is told."""
        answered = (Answered(response_id, event) for event in events)
        return [told for one in answered for told in self.take(self.call.engine(one))]

    def done(self, response_id: str, reason: FinishReason = "stop") -> dict[str, Any]:
        """It has come to its end; the response then."""
        *_, last = self.said(response_id, ChatDone(reason, 9, 3))
        assert last["type"] == "response.done"
        response: dict[str, Any] = last["response"]
        return response

    @property
    def question(self) -> Question:
        """What was asked last."""
        *_, action = [one for one in self.actions if isinstance(one, AnswerAside)]
        assert action.question is not None
        return action.question

    def shown(self) -> list[tuple[str, object]]:
        """Who says what in the last question, one part each; calls by name."""
        said = self.question.said
        parts = [(one.role, _shown(part)) for one in said for part in one.parts]
        return parts + [(one.role, call.name) for one in said for call in one.calls]


def _shown(part: object) -> object:
    return part.text if isinstance(part, ChatText) else part
