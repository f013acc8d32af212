"""Tiny random models of many architectures, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
LAYERS = 2
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 4}),
    "phi": ("PhiConfig", {}),
    "falcon": ("FalconConfig", {}),
    "opt": ("OPTConfig", {"word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.0}),
    "stablelm": ("StableLmConfig", {}),
    "gptj": (
        "GPTJConfig",
        {"n_embd": 32, "n_head": 4, "n_layer": LAYERS, "rotary_dim": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    ),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
}


#: Attention in chunks, which keeps its keys and values in a way of its own.
_CHUNKED = {
    "llama4_text": (
        "Llama4TextConfig",
        {"head_dim": 8, "attention_chunk_size": 4, "intermediate_size_mlp": 48, "num_local_experts": 2},
    )
}


def tiny(
    kind: str,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: int = LAYERS,
) -> PreTrainedModel:
    """A model of an architecture by its ``model_type``, with weights large enough for attention to matter."""
    name, own = (_CONFIGS | _CHUNKED)[kind]
    config = getattr(transformers, name)(**{**COMMON, **own, "num_hidden_layers": layers})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
    return model.to(dtype).eval()


def gemma3_with_pictures() -> PreTrainedModel:
    """Gemma 3 with its picture tower, whose linears are named like the text model's."""
    text = {**COMMON, "head_dim": 8, "sliding_window": 4}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=96
    )
    return AutoModelForCausalLM.from_config(config).eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids without the special ones."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def randomise(model: torch.nn.Module, scale: float = 0.3, seed: int = 0) -> None:
    """Random values for every adapter parameter, so that no update is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "malora_" in name or "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
