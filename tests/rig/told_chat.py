"""Chats whose answers are spoken, told from the first piece to the last."""

from typing import Any

from agent.chat_types import ChatMessage, ChatPart, ChatRequest, ChatText
from agent.duplex.answer_speech import SpeechRules
from agent.duplex.chat import Chat
from agent.duplex.lanes import Runner
from agent.duplex.tokens import Token
from agent.duplex.work import Work
from tests.rig.answer_voice import RULES, Choir, calls_of, pieces_of, speaker
from tests.rig.tiny_mind import LetterCodec, Script, runner


def asked(*parts: ChatPart | str, system: str = "", **options: Any) -> ChatRequest:
    content = tuple(ChatText(one) if isinstance(one, str) else one for one in parts)
    messages = [ChatMessage("user", content)]
    if system:
        messages.insert(0, ChatMessage("system", (ChatText(system),)))
    options = {"max_tokens": 40, "seed": 3, "speaks": True} | options
    return ChatRequest(tuple(messages), **options)


def script(*said: str | int, ends: int = Token.TTS_EOS) -> Script:
    return Script(
        [one for part in said for one in ([part] if isinstance(part, int) else map(ord, part))],
        [int(ends)],
    )


class Told:
    """An answer, all of it, and how it came about."""

    def __init__(
        self,
        *said: str | int,
        request: ChatRequest | None = None,
        choir: Choir | None = None,
        used: Runner | None = None,
        rules: SpeechRules = RULES,
    ) -> None:
        self.used, self.choir = used or runner(), choir or Choir()
        self.works: list[Work] = []
        words = script(*said) if said else None
        voice = speaker(self.choir, rules=rules)
        self.chat = Chat(self.used, request or asked("Hi"), script=words, speaker=voice)
        self.pieces = pieces_of(self.chat, self.used, self.works.append)
        self.text = "".join(one.text for one in self.pieces)
        self.calls = calls_of(self.works)

    @property
    def said(self) -> list[str]:
        """What each call of the speech LM says."""
        return [LetterCodec().decode(one.said) for one in self.calls]
