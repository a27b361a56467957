"""The section `[auth]`: keys, what their holders may do, and what the page may without one."""

from typing import Literal

from pydantic import Field

from agent.setting_kinds import KeyHashes, Section


class AuthSection(Section):
    """Who may use the server."""

    keys: KeyHashes = Field(
        default=(),
        strict=False,
        description="API keys by name and hash; more stand in the keys file.",
    )
    keys_file: str = Field(
        default="",
        description="Where `voice-agent keys` keeps keys; a running server follows what changes "
        "there. Empty is `keys.jsonl` in the data folder.",
    )
    required: bool = Field(
        default=True,
        description="Listen beyond this machine only with a key; off (`--no-auth`), whoever "
        "reaches a server without keys may use it. Keys that there are, are asked for anyway.",
    )
    max_calls: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Calls at a time for each key that has no limit of its own; 0 is no limit "
        "but `calls.max_calls`.",
    )
    max_chats: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Chats, and texts read aloud, at a time for each key that has no limit of its "
        "own, waiting ones included; 0 is no limit but those of `chat`.",
    )
    requests_per_minute: int = Field(
        default=600,
        ge=1,
        le=1_000_000,
        description="Requests for each key that has no limit of its own; more get a 429.",
    )
    failures_per_minute: int = Field(
        default=30,
        ge=1,
        le=10_000,
        description="Refused keys from each address, after which the refusal is a 429.",
    )
    page: Literal["open", "off"] = Field(
        default="open",
        description="`open` lets whoever opens the server's own page use it; with `off` the page "
        "asks for a key.",
    )
    page_calls: int = Field(
        default=8,
        ge=1,
        le=1000,
        description="Calls at a time of all who opened the page without a key.",
    )
    page_calls_per_address: int = Field(
        default=4, ge=1, le=1000, description="And of those among them who share an address."
    )
    page_chats: int = Field(
        default=12,
        ge=1,
        le=1000,
        description="Chats, and texts read aloud, at a time of all who opened the page without a "
        "key, waiting ones included.",
    )
    page_chats_per_address: int = Field(
        default=4, ge=1, le=1000, description="And of those among them who share an address."
    )
    page_requests_per_minute: int = Field(
        default=300, ge=1, le=1_000_000, description="Their requests, for each address."
    )
    page_voices: bool = Field(
        default=False,
        description="Whether the page may add and delete voices without a key, where keys are "
        "asked for.",
    )
