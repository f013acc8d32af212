"""The recipe of what was found: keys that say one thing together, and what a tool does where its file says nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malora_cli.adapters.targets import PAPER_TARGETS
from malora_cli.importing._base import Found, Ledger
from malora_cli.importing._data import Mixed, Places
from malora_cli.importing._readers import NOT_LORA
from malora_cli.projects import Noted
from malora_cli.recipe.settings import file_name_from

#: The sections of a recipe, in the order they are written.
_SECTIONS = ("model", "method", "mix", "train", "eval", "output")
#: Names for all linears of a block, and the one that the paper's choice leaves out.
_ALL, _OUTPUT = ("all", "all-linear", "all_linear"), "o_proj"
#: The warm-up that is taken where a number of steps is no share of a known number.
_WARMUP = 0.03


@dataclass(frozen=True)
class _Rhythm:
    """Something that is done again and again.

    Args:
        name: Its setting.
        part: In steps, or a share of them.
        when: Whether it is done by steps, by passes, or not at all.
        a_pass: How often it is done in a pass.
    """

    name: str
    part: str
    when: str = ""
    a_pass: str = ""


_RHYTHMS = (
    _Rhythm("log_every", "log_every"),
    _Rhythm("eval_every", "eval_every", "eval_strategy", "evals_per_epoch"),
    _Rhythm("checkpoint_every", "save_every", "save_strategy", "saves_per_epoch"),
)


@dataclass(frozen=True)
class _Parts:
    """What was found, and else what the tool does by itself."""

    found: Mapping[str, Found]
    defaults: Mapping[str, Any]
    tool: str

    def value(self, part: str, otherwise: Any = None) -> Any:
        return self.found[part].value if part in self.found else self.defaults.get(part, otherwise)

    def key(self, part: str) -> str | None:
        """The key that was given for a part."""
        return self.found[part].key if part in self.found else None

    def noted(self, value: Any, *parts: str) -> Noted:
        """A value, and what it was taken from."""
        given = [self.found[part].key for part in parts if part in self.found]
        return Noted(value, " and ".join(given) or f"the default of {self.tool}")


def settle(
    found: Mapping[str, Found], defaults: Mapping[str, Any], mixed: Mixed, at: Places, to: Ledger
) -> dict[str, Any]:
    """The recipe, but for its mix, which is made already.

    Args:
        found: What was given, by part.
        defaults: What the tool does where nothing is said, by part.
        mixed: The mix.
        at: Where files lie.
        to: Takes note of what becomes of keys that say one thing together.

    Raises:
        RecipeError: No base model is named, or two keys contradict one another.
    """
    parts = _Parts(found, defaults, to.tool)
    if "model.base" not in found:
        raise to.wrong("the base model", "is not named")
    recipe: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for part in dict.fromkeys((*found, *defaults)):
        section, dot, name = part.partition(".")
        if dot and section in recipe and parts.value(part) is not None:
            recipe[section][name] = parts.noted(parts.value(part), part)
    recipe["model"] |= _model(parts, at, to)
    recipe["method"] = _method(parts, at, to)
    recipe["train"] = _train(parts, mixed, to) | _trackers(parts) | recipe["train"]
    recipe["output"] |= _output(parts)
    return {section: settings for section, settings in recipe.items() if settings or section == "mix"}


def _model(parts: _Parts, at: Places, to: Ledger) -> dict[str, Any]:
    model: dict[str, Any] = {"base": parts.noted(at.model(parts.value("model.base")), "model.base")}
    given = "model.dtype" in parts.found
    half = next((part for part in ("bf16", "fp16") if parts.value(part)), None)
    if half and not given:
        model["dtype"] = parts.noted({"bf16": "bfloat16", "fp16": "float16"}[half], half)
    for part in ("bf16", "fp16"):
        if (key := parts.key(part)) and not parts.value(part):
            to.carried(key, "off, as here")
        elif key and given:
            to.approximated(key, "model.dtype is that of the frozen weights, which is given apart")
    bits = parts.value("bits")
    if bits is not None:
        model["quantise"] = parts.noted({4: "nf4", 8: "int8"}[bits], "bits")
    return model


def _method(parts: _Parts, at: Places, to: Ledger) -> dict[str, Any]:
    """The adapter: a LoRA of the same shape."""
    chosen = next((name for name in ("dora", "rslora") if parts.value(name)), None)
    if parts.value("dora") and (also := parts.key("rslora")) and parts.value("rslora"):
        to.left_out(also, "dora is not scaled by the root of its rank here")
    method: dict[str, Any] = {"name": parts.noted(chosen or "lora", chosen or "adapter")}
    if not parts.value("adapter", True):
        _without_lora(parts, to)
        return {"name": Noted("lora", "in place of all weights")}
    rank = parts.value("rank")
    alpha = parts.value("alpha") or (2 * rank if rank else None)
    for name, part, value in (("r", "rank", rank), ("lora_alpha", "alpha", alpha), ("lora_dropout", "dropout", None)):
        if (value := value if value is not None else parts.value(part)) is not None:
            method[name] = parts.noted(value, part)
    targets = _targets(parts, at, to)
    return method | ({"target_modules": targets} if targets else {})


def _without_lora(parts: _Parts, to: Ledger) -> None:
    """Note what becomes of training all weights, and of the shape of a LoRA that is given all the same."""
    if parts.key("adapter") is None:
        to.approximated("all weights are trained (nothing else is said)", NOT_LORA)
    for part in ("rank", "alpha", "dropout", "targets", "dora", "rslora"):
        if key := parts.key(part):
            to.left_out(key, "it says nothing where all weights are trained")


def _targets(parts: _Parts, at: Places, to: Ledger) -> Noted | None:
    """The linears to adapt; None leaves them to the method."""
    given, key = parts.value("targets"), parts.key("targets")
    if not given:
        return None
    if not set(given) & set(_ALL):
        if key:
            to.carried(key, "method.target_modules")
        return parts.noted(given, "targets")
    paper = PAPER_TARGETS.get(_architecture(parts.value("model.base"), at))
    if isinstance(paper, list) and "q_proj" in paper and "down_proj" in paper:
        if key:
            to.carried(key, "method.target_modules")
        return parts.noted([*paper, _OUTPUT], "targets")
    shown = key or "the linears that are adapted"
    to.approximated(
        shown,
        "all but the attention output: this model's linears are not known here; name them in method.target_modules",
    )
    return None


def _architecture(base: str, at: Places) -> str:
    """The kind of a model that lies here; nothing is fetched to find out."""
    folder = at.local(base)
    try:
        config = json.loads(((folder or Path()) / "config.json").read_text(encoding="utf-8")) if folder else {}
        return str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _train(parts: _Parts, mixed: Mixed, to: Ledger) -> dict[str, Any]:
    rows, batch = _batch(parts, to)
    length, steps = _length(parts, mixed, batch, to)
    train = length | {
        "batch_size": parts.noted(batch, "rows", "accumulate", "batch", "processes"),
        "micro_batch_size": parts.noted(rows, "rows"),
    }
    a_pass = None if mixed.rows is None else max(1, math.ceil(mixed.rows / batch))
    train |= _warmup(parts, steps, to) | _seeds(parts)
    for rhythm in _RHYTHMS:
        train |= _every(rhythm, parts, (a_pass, steps), to)
    if parts.value("keep_best"):
        train["keep_best"] = parts.noted(1, "keep_best")
    return train


def _batch(parts: _Parts, to: Ledger) -> tuple[int, int]:
    """Rows at once, and rows of a step."""
    rows, processes = int(parts.value("rows", 1)), int(parts.value("processes", 1))
    whole = parts.value("batch")
    if whole is None:
        factor = parts.value("accumulate") or math.ceil(parts.value("least", 1) / (rows * processes))
        return rows, rows * processes * int(factor)
    if whole % rows:
        fitting = math.gcd(int(whole), rows)
        if key := parts.key("rows"):
            to.approximated(key, f"train.micro_batch_size: {fitting}, since it divides train.batch_size here")
        rows = fitting
    return rows, int(whole)


def _length(parts: _Parts, mixed: Mixed, batch: int, to: Ledger) -> tuple[dict[str, Any], int | None]:
    """What ends the training, and how many steps that is, where it can be told."""
    steps, epochs = parts.value("steps"), parts.value("epochs", 1)
    if steps is not None:
        if key := parts.key("epochs"):
            to.carried(key, f"nothing: {parts.key('steps')} goes first")
        return {"steps": parts.noted(steps, "steps")}, int(steps)
    if mixed.stop is not None:
        times = max(1, math.ceil(epochs))
        for task in mixed.tasks:
            if times > 1:
                task.settings["repeats"] = parts.noted(times, "epochs")
        if key := parts.key("epochs"):
            differs = "" if times == epochs else ", rounded up"
            (to.approximated if differs else to.carried)(key, f"tasks.repeats, and train.stop{differs}")
        return {"stop": mixed.stop}, None
    passes = {"epochs": parts.noted(epochs, "epochs")}
    return passes, None if mixed.rows is None else max(1, math.ceil(mixed.rows * epochs / batch))


def _warmup(parts: _Parts, steps: int | None, to: Ledger) -> dict[str, Any]:
    """The share of the steps in which the rate rises; transformers takes a number of steps below 1 as one."""
    wanted, key = parts.value("warmup_steps"), parts.key("warmup_steps")
    if not wanted or key is None:
        return {"warmup_ratio": parts.noted(parts.value("warmup", 0), "warmup")}
    if ratio := parts.key("warmup"):
        to.carried(ratio, f"nothing: {key} goes first")
    if wanted < 0:
        raise to.wrong(key, f"got {wanted}; must be at least 0")
    if wanted < 1:
        to.carried(key, "train.warmup_ratio")
        share = wanted
    elif steps is None:
        share = _WARMUP
        to.approximated(key, f"train.warmup_ratio: {share}, since the number of steps is not known here")
    else:
        share = min(1, round(wanted / steps, 4))
        exact = parts.value("steps") is not None
        (to.carried if exact else to.approximated)(key, f"train.warmup_ratio: {share}, {wanted} of {steps:,} steps")
    return {"warmup_ratio": parts.noted(share, "warmup_steps")}


def _seeds(parts: _Parts) -> dict[str, Any]:
    if parts.value("data_seed") is None:
        return {"seed": parts.noted(parts.value("seed", 0), "seed")}
    own = parts.noted(parts.value("seed", 0), "seed")
    return {"seed": parts.noted(parts.value("data_seed"), "data_seed"), "init_seed": own, "dropout_seed": own}


def _every(rhythm: _Rhythm, parts: _Parts, known: tuple[int | None, int | None], to: Ledger) -> dict[str, Any]:
    """How often something is done; ``known`` are the steps of a pass and of the training, where they can be told."""
    (a_pass, steps), name = known, rhythm.name
    when, key, often = parts.key(rhythm.when), parts.key(rhythm.part), parts.key(rhythm.a_pass)
    strategy, value = parts.value(rhythm.when), parts.value(rhythm.part)
    own = f"it is done every train.{name} steps"
    if when:
        to.approximated(when, own if strategy == "no" else f"train.{name}, in steps")
    if often or strategy == "epoch":
        given, times = often or when or "", parts.value(rhythm.a_pass, 1)
        if a_pass is None:
            to.approximated(given, f"{own}; how many steps a pass has is not known here")
            return {}
        to.approximated(given, f"train.{name}: a pass has about {a_pass:,} steps")
        return {name: parts.noted(max(1, round(a_pass / times)), rhythm.a_pass, rhythm.when)}
    if value is None or (key is None and strategy == "no"):
        return {}
    if key is None or (value >= 1 and strategy != "no"):
        if when and strategy == "steps":
            to.carried(when, f"train.{name}")
        return {name: parts.noted(int(value), rhythm.part)}
    if strategy == "no" or steps is None:
        to.approximated(key, own if strategy == "no" else f"{own}; a share of the steps is not known here")
        return {}
    to.approximated(key, f"train.{name}: {max(1, round(value * steps))} of {steps:,} steps")
    return {name: parts.noted(max(1, round(value * steps)), rhythm.part)}


def _trackers(parts: _Parts) -> dict[str, Any]:
    """Trackers that have a key each."""
    given = [name for name in ("wandb", "mlflow", "tensorboard") if name in parts.found]
    return {"report_to": parts.noted(given, *given)} if given else {}


def _output(parts: _Parts) -> dict[str, Any]:
    name = parts.value("run_name")
    return {"name": parts.noted(file_name_from(name), "run_name")} if name else {}
