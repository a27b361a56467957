"""Tokenizer files that have the right number of tokens and every one that the code knows."""

import functools
import json
from pathlib import Path

from agent.duplex.tokens import VOCABULARY_SIZE, WRITTEN


@functools.cache
def made_tokenizer() -> dict[str, bytes]:
    """The files by name; their words mean nothing."""
    known = {int(token): written for token, written in WRITTEN.items()}
    words = {f"word{index}": index for index in range(VOCABULARY_SIZE) if index not in known}
    listed = {str(index): {"content": written} for index, written in known.items()}
    settings = {"added_tokens_decoder": listed, "bad_token_ids": []}
    return {
        "tokenizer_config.json": json.dumps(settings).encode(),
        "vocab.json": json.dumps(words).encode(),
        "merges.txt": b"#version: 0.2\n",
    }


def write_tokenizer(folder: Path) -> None:
    """The files in `folder`."""
    for name, content in made_tokenizer().items():
        (folder / name).write_bytes(content)
