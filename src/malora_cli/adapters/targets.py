"""Which linears the paper adapts, by architecture: every linear of a block but the attention output.

The paper names them only for LLaMA; its parameter percentages fit q, k, v, gate, up and down without o. Where an
architecture fuses some of these, the fused linear stands for its parts.
"""

from __future__ import annotations

_SPLIT = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
_SPLIT_FAMILIES = [
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "olmo",
    "olmo2",
    "olmo3",
    "smollm3",
    "granite",
    "cohere",
    "cohere2",
]

#: Names of the linears to adapt, or a regular expression of them, by a model's ``config.model_type``.
PAPER_TARGETS: dict[str, list[str] | str] = {
    **dict.fromkeys(_SPLIT_FAMILIES, _SPLIT),
    "phi": ["q_proj", "k_proj", "v_proj", "fc1", "fc2"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"],
    "falcon": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"],
    # Its picture tower has linears of the same names, which no text ever reaches.
    "gemma3": rf".*language_model\..*\.({'|'.join(_SPLIT)})",
}
