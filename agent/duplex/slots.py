"""The places of all conversations in all caches, allocated at start; nothing grows later."""

from dataclasses import dataclass

import torch

from agent.duplex.audio_encoder import AudioCache
from agent.duplex.config import DuplexConfig, LlmConfig, SpeechConfig
from agent.duplex.kv_cache import KvCache
from agent.errors import CapacityError
from agent.torch_parts.checkpoint import Target

TURN_TOKENS = 2048
"""Positions of the speech LM that a turn may take: 46 s at least, mostly more than a minute. A turn
that is longer begins anew in them."""


@dataclass(frozen=True, slots=True)
class SlotSizes:
    """How many conversations, and how long each may grow."""

    slots: int = 1
    context_tokens: int = 8192
    turn_tokens: int = TURN_TOKENS


class Slots:
    """Caches of the LLM, the speech LM and the audio encoder; a conversation takes one slot."""

    def __init__(self, config: DuplexConfig, sizes: SlotSizes, target: Target) -> None:
        if sizes.slots < 1 or sizes.context_tokens < 1 or sizes.turn_tokens < 1:
            raise ValueError("at least one slot of at least one position")
        if sizes.context_tokens > config.llm.max_positions:
            raise ValueError(f"the model reaches no further than {config.llm.max_positions} tokens")
        self.llm = _allocate(config.llm, sizes.slots, sizes.context_tokens, target)
        turn_tokens = min(sizes.turn_tokens, config.speech.max_positions)
        self.speech = _allocate(config.speech, sizes.slots, turn_tokens, target)
        self.audio = AudioCache(config.audio, sizes.slots, target.device, target.dtype)
        self._free = list(range(sizes.slots))
        self.count = sizes.slots

    @property
    def bytes_each(self) -> dict[str, int]:
        """What a slot takes of the device's memory, by cache; the vocoder keeps its own."""
        tensors = {
            "llm": (self.llm.tensor,),
            "speech": (self.speech.tensor,),
            "audio": (self.audio.keys, self.audio.values),
        }
        return {
            name: sum(one.numel() * one.element_size() for one in cache) // self.count
            for name, cache in tensors.items()
        }

    @property
    def free(self) -> int:
        """How many slots nobody has."""
        return len(self._free)

    def take(self) -> int:
        """A slot of one's own; CapacityError when there is none."""
        if not self._free:
            raise CapacityError("every slot of the model is taken", retry_after_s=5.0)
        return self._free.pop(0)

    def give_back(self, slot: int) -> None:
        """The slot is anybody's again; what is in it means nothing any more."""
        if slot in self._free:
            raise ValueError(f"slot {slot} was given back before")
        self._free = sorted([*self._free, slot])


def _allocate(
    config: LlmConfig | SpeechConfig, slots: int, positions: int, target: Target
) -> KvCache:
    shape = (config.layers, 2, slots, config.kv_heads, positions, config.head_width)
    return KvCache(torch.zeros(shape, dtype=target.dtype, device=target.device))
