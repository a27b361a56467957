"""The real server with an engine that reads back what it is given, and the real `openai` client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai

from agent.api.chat import CHATS, Chats
from tests.rig.reading_engine import ReadingEngine
from tests.rig.server import running_server

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class ChatServer:
    """A server that chats."""

    url: str
    chats: Chats
    engine: ReadingEngine
    client: openai.AsyncOpenAI
    http: aiohttp.ClientSession

    async def ask(self, content: object = "hello", **options: Any) -> Any:
        """One question by the client; `extra_body` and the like are its own options."""
        messages: Any = [{"role": "user", "content": content}]
        return await self.client.chat.completions.create(
            model="anything", **{"messages": messages, **options}
        )

    async def answer(self, content: object = "hello", **options: Any) -> str:
        """What was answered."""
        return str((await self.ask(content, **options)).choices[0].message.content)

    async def refusal(self, status: int, **body: object) -> dict[str, Any]:
        """The error object with which a raw body is refused."""
        question = [{"role": "user", "content": "hello"}]
        async with self.http.post(PATH, json={"messages": question, **body}) as response:
            document = await response.json()
            assert response.status == status, document
        assert set(document) == {"error"}
        assert set(document["error"]) == {"message", "type", "code", "param"}
        error: dict[str, Any] = document["error"]
        return error


@asynccontextmanager
async def chat_server(
    *overrides: str, engine: ReadingEngine | None = None
) -> AsyncIterator[ChatServer]:
    """Serve chats with `overrides` ("section.key=value")."""
    async with running_server(overrides) as running:
        chats = running.app[CHATS]
        reading = engine or ReadingEngine()
        chats.engine = reading
        async with (
            openai.AsyncOpenAI(
                base_url=f"{running.url}/v1",
                api_key="unused",
                max_retries=0,
                # Here nothing is encrypted, and to read the system's certificates takes long.
                http_client=openai.DefaultAsyncHttpxClient(verify=False),
            ) as client,
            aiohttp.ClientSession(running.url) as http,
        ):
            yield ChatServer(running.url, chats, reading, client, http)
