"""What weights of fewer bits save, told without torch."""

from agent.duplex.config import LlmConfig
from agent.duplex.quant_choice import GROUP, Quantisation

_BFLOAT16_BYTES = 2
_STEP_BYTES = 4


def projection_shapes(config: LlmConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each projection of a layer, by its name."""
    heads, kv_heads = config.heads * config.head_width, config.kv_heads * config.head_width
    return {
        "q_proj": (heads, config.width),
        "k_proj": (kv_heads, config.width),
        "v_proj": (kv_heads, config.width),
        "o_proj": (config.width, heads),
        "gate_proj": (config.ffn_width, config.width),
        "up_proj": (config.ffn_width, config.width),
        "down_proj": (config.width, config.ffn_width),
    }


def projection_bytes(config: LlmConfig, quantisation: Quantisation) -> int:
    """What the projections of all layers take; in bfloat16 where they are not quantised."""
    shapes = projection_shapes(config).values()
    return config.layers * sum(_bytes(*shape, quantisation) for shape in shapes)


def saved_bytes(config: LlmConfig, quantisation: Quantisation) -> int:
    """How much less than in bfloat16 they take."""
    return projection_bytes(config, "none") - projection_bytes(config, quantisation)


def _bytes(outputs: int, inputs: int, quantisation: Quantisation) -> int:
    if quantisation == "none":
        return outputs * inputs * _BFLOAT16_BYTES
    if quantisation == "int4":
        return outputs * inputs // 2 + outputs * inputs // GROUP * _STEP_BYTES
    return outputs * inputs + outputs * _STEP_BYTES
