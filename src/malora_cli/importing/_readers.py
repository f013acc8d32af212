"""Readers of values: what a recipe has where another tool has this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from malora_cli.importing._base import Said

#: What becomes of training all weights, or of another adapter.
NOT_LORA = "a LoRA of rank 64 takes its place: base weights stay frozen here"

#: What becomes of keys that only preference, reward or reinforcement training has.
REFUSED = "refused: only supervised fine-tuning is imported"
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
#: Schedules that a recipe has under another name, and those that come near one.
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
_NEAR = {
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "one_cycle": "cosine",
    "polynomial": "linear",
    "inverse_sqrt": "linear",
    "warmup_stable_decay": "linear",
    "rex": "linear",
    "reduce_lr_on_plateau": "constant",
}
#: Far beyond any number of rows or steps.
_LARGEST = 10**12
_ADAMW = ("adamw", "adamw_torch", "adamw_hf", "adamw_torch_fused")
_TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_ATTENTION = {
    "fa2": "flash_attention_2",
    "flash_attn": "flash_attention_2",
    "flash_attention_2": "flash_attention_2",
    "fa3": "flash_attention_3",
    "flash_attention_3": "flash_attention_3",
    "sdpa": "sdpa",
    "eager": "eager",
    "disabled": "eager",
    "flex_attention": "flex_attention",
}


def text(value: Any) -> str:
    """Read text."""
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


def number(value: Any) -> float:
    """Read a number, which may be written as text: ``1e-4`` is text to many readers of YAML."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        found = float(value)
    except ValueError:
        raise ValueError("must be a number") from None
    if not abs(found) < _LARGEST:  # nor NaN
        raise ValueError(f"must be a number below {_LARGEST:,}")
    return int(found) if found.is_integer() else found


def positive(value: Any) -> float:
    """Read a number above 0."""
    if (found := number(value)) <= 0:
        raise ValueError("must be greater than 0")
    return found


def count(value: Any) -> int:
    """Read a whole number from 1."""
    if not isinstance(found := positive(value), int):
        raise ValueError("must be a whole number")
    return found


def limit(value: Any) -> int | None:
    """Read a count that is -1 or 0 where there is none."""
    return None if number(value) <= 0 else count(value)


def seed(value: Any) -> int:
    """Read a seed."""
    found = number(value)
    if not isinstance(found, int) or not 0 <= found < 2**32:
        raise ValueError("must be a whole number from 0 to 2**32 - 1")
    return found


def ratio(value: Any) -> float:
    """Read a share from 0 to 1."""
    if not 0 <= (found := number(value)) <= 1:
        raise ValueError("must be from 0 to 1")
    return found


def switch(value: Any) -> bool:
    """Read true or false; ``no`` and ``on`` are these to many readers of YAML."""
    found = _WORDS.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ValueError("must be true or false")
    return found


def names(value: Any) -> list[str]:
    """Read a list of names, which may be one text with commas."""
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError("must be a list of names")
    return [name.strip() for name in listed if name.strip()]


def numbers(value: Any) -> list[float]:
    """Read a list of numbers, which may be one text with commas."""
    listed = value.split(",") if isinstance(value, str) else value
    return [number(one) for one in (listed if isinstance(listed, list) else [listed])]


def mapping(value: Any) -> dict[str, Any]:
    """Read a mapping."""
    if not isinstance(value, dict):
        raise ValueError("must be a mapping")
    return value


def mappings(value: Any) -> list[dict[str, Any]]:
    """Read a list of mappings."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("must be a list of mappings")
    return value


def one_of(choices: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A reader of one of some words, each with what it stands for."""

    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return choices[value]

    return read


def tuner(*loras: str) -> Callable[[Any], Any]:
    """A reader of what is trained: a LoRA by one of some names, or something that a LoRA takes the place of."""
    return lambda value: text(value) in loras or Said(False, differs=NOT_LORA)


def only(*wanted: Any, instead: str) -> Callable[[Any], None]:
    """A reader of a key that says what is trained: anything but supervised fine-tuning is refused."""

    def read(value: Any) -> None:
        if value not in wanted:
            raise ValueError(f"only supervised fine-tuning is imported; {instead}")

    return read


def never(_value: Any) -> NoReturn:
    """A reader of a key that only preference and reward training has."""
    raise ValueError("only supervised fine-tuning is imported, not preference, reward or reinforcement training")


def schedule(value: Any) -> Any:
    """Read the course of the learning rate."""
    value = text(value)
    if value in _SCHEDULES:
        return _SCHEDULES[value]
    if value in _NEAR:
        return Said(_NEAR[value], differs=f"{_NEAR[value]} comes nearest to {value}")
    return Said(why="no schedule comes near it; train.schedule stays cosine")


def optimiser(value: Any) -> Said:
    """Read the name of an optimiser."""
    if value in _ADAMW:
        return Said()
    if isinstance(value, str) and "adamw" in value:
        return Said(differs="its states have 32 bits here")
    return Said(why="AdamW is the only optimiser here")


def trackers(value: Any) -> Said:
    """Read the names of trackers."""
    given = names(value) if value not in (True, False) else []
    kept = [name for name in given if name in _TRACKERS]
    lost = [name for name in given if name not in (*_TRACKERS, "none")]
    if lost and not kept:
        return Said(why=f"not here: {', '.join(lost)}; there are {', '.join(_TRACKERS)}")
    return Said(kept, differs=f"without {', '.join(lost)}" if lost else "")


def dtype(value: Any) -> Any:
    """Read a number format."""
    if value == "auto":
        return Said("bfloat16", differs="bfloat16, which is what most models are saved in")
    found = _DTYPES.get(value, value) if isinstance(value, str) else value
    if found not in _DTYPES.values():
        raise ValueError(f"must be one of {', '.join(_DTYPES.values())}")
    return found


def attention(value: Any) -> Any:
    """Read the name of an attention implementation."""
    if not isinstance(value, str) or value not in _ATTENTION:
        return None if value == "auto" else Said(why="not an implementation that is known here; sdpa is taken")
    return _ATTENTION[value]


def every(value: Any) -> float:
    """Read a number of steps, or a share of them below 1."""
    found = positive(value)
    if found >= 1 and not isinstance(found, int):
        raise ValueError("must be a whole number, or a share below 1")
    return found


def strategy(value: Any) -> str:
    """Read when something is done: ``no``, ``steps`` or ``epoch``."""
    found = {True: "steps", False: "no"}.get(value, value) if isinstance(value, bool) else value
    return str(one_of({"no": "no", "steps": "steps", "epoch": "epoch", "best": "steps"})(found))


def linears(value: Any) -> Any:
    """Read which linears are adapted: names, or all of them."""
    if isinstance(value, str) and any(sign in value for sign in "()[]|*^$\\"):
        return Said(why="an expression; name the linears in method.target_modules")
    return names(value)


def bits(value: Any) -> Any:
    """Read a number of bits that frozen weights are kept in."""
    found = number(value)
    if found >= 16:
        return Said()
    return found if found in (4, 8) else Said(why="4 or 8 bits are what there is in model.quantise")
