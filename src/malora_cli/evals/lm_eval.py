"""Tasks of EleutherAI's lm-evaluation-harness on a model of ours, scored by it, row by row.

The model is handed to it as it is, so that every token is routed as ever. Prompts go through the chat template as in
training, with the task's own text as the user's turn. Nothing is kept in the harness's caches. What it scores as a mean
over rows comes back as marks, so that our intervals and paired tests hold; its other metrics as values alone.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from malora_cli.data.chat.template import Segment
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Turn
from malora_cli.data.order import Shuffle
from malora_cli.errors import DataError, RecipeError, RunError
from malora_cli.evals.metrics._base import Answer, Mark
from malora_cli.modeling.modes import autocast_dtype, evaluating
from malora_cli.modeling.reason import first_line
from malora_cli.registry import did_you_mean

_SAMPLE = 4  # what a random stream is for, beside the seed
_SEED = 1234  # lm-eval's own, of the examples in a prompt


@dataclass(frozen=True)
class LmEvalTask:
    """One task of the harness, scored.

    Args:
        name: Its name there.
        version: Its version there.
        rows: Numbers of the rows that were asked, from 0, ascending.
        answers: What the model answered to each.
        marks: What each is worth by every metric that is a mean over rows from 0 to 1, the task's first metric first.
        values: The score by every metric, as the harness has it.
        chat: Whether the prompts went through a chat template.
    """

    name: str
    version: str
    rows: list[int]
    answers: list[Answer]
    marks: dict[str, list[Mark]]
    values: dict[str, float]
    chat: bool


def lm_eval_task(
    name: str,
    model: Any,
    encoder: Encoder,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    shots: int | None = None,
    system: str | None = None,
) -> list[LmEvalTask]:
    """Let the harness ask a model.

    Args:
        name: A task, group or tag of the harness, or the path of a YAML file that describes one.
        model: A causal language model, wrapped or not.
        encoder: The model's.
        limit: Rows of a task at most, chosen at random: a smaller sample is a part of a larger one.
        batch_size: Rows that go through the model at once.
        shots: Solved rows in each prompt; None is as many as the task has.
        system: System prompt of the rows; None leaves it to the chat template.

    Returns:
        The tasks that the name stands for.

    Raises:
        RecipeError: There is no such task, or it runs code that the model writes.
        DataError: Its rows or its metric cannot be had.
        RunError: The harness is not installed.
    """
    where = f"lm_eval:{name}"
    check_installed(where)
    from lm_eval.evaluator import evaluate

    with _quiet(where):
        loaded = _loaded(name, where)
        samples: dict[str, list[int]] = {}
        for task_name, task in loaded["tasks"].items():
            _prepare(task, shots)
            samples[task_name] = _sample(task_name, len(task.eval_docs), limit)
        with evaluating(model):
            found = evaluate(
                lm=_harnessed(model, encoder, batch_size, system),
                task_dict=loaded,
                samples=samples,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=encoder.template is not None,
                fewshot_as_multiturn=True,
            )
    chat = encoder.template is not None
    return [_scored(task, found, sorted(samples[task_name]), chat) for task_name, task in loaded["tasks"].items()]


def check_installed(where: str) -> None:
    """Make sure that the harness is there.

    Raises:
        RunError: It is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RunError(
            "its tasks need the package lm-eval, which is not installed",
            where=where,
            fix="Install it: pip install 'malora[lm-eval]'",
        )


@contextmanager
def _quiet(where: str) -> Iterator[None]:
    """Within the block the harness logs nothing; where it cut prompts, that is told."""
    logger = logging.getLogger("lm_eval")
    cut: list[str] = []

    class Cuts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "runcat" in (message := record.getMessage()):
                cut.append(message)

    handler, propagated, level = Cuts(), logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
        logger.setLevel(level)
    if cut:
        warnings.warn(
            f"{where}: {len(cut):,} prompts were cut on the left, to what the model has room for", stacklevel=4
        )


# ---------------------------------------------------------------- its tasks


def _loaded(name: str, where: str) -> Any:
    """The tasks that a name stands for, as the harness has them."""
    from lm_eval.tasks import TaskManager

    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    if is_path and not Path(name).is_file():
        raise RecipeError("file not found", where=where)
    file = Path(name) if is_path else _file_of(name)
    if file is not None:
        _refuse_code(_settings(file, where), where)
    # Thousands of files are parsed for its index, which takes most of a minute.
    manager = TaskManager(include_defaults=file is None)
    if file is None and name not in manager.task_index:
        raise RecipeError(f"lm-eval has no task '{name}'; {did_you_mean(name, manager.all_tasks)}", where=where)
    try:
        loaded = manager.load([str(file) if file is not None else name])
    except Exception as error:  # whatever a description of a task may do
        raise DataError(f"the task cannot be loaded ({first_line(error)})", where=where) from error
    for task in loaded["tasks"].values():
        _refuse_code({"unsafe_code": getattr(task, "UNSAFE_CODE", False)}, where)
    return loaded


def _file_of(name: str) -> Path | None:
    """The file of the harness that names a task, if one does so in a line of its own."""
    import lm_eval.tasks

    says = re.compile(rf"^task:\s*[\"']?{re.escape(name)}[\"']?\s*(?:#.*)?$".encode(), re.MULTILINE)
    files = sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"))
    return next((file for file in files if says.search(file.read_bytes())), None)


def _settings(file: Path, where: str) -> Mapping[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(file, resolve_func=False))
    except Exception as error:  # not valid YAML, or includes of files that are not there
        raise RecipeError(f"the file describes no task ({first_line(error)})", where=where) from error


def _refuse_code(settings: Mapping[str, Any], where: str) -> None:
    if settings.get("unsafe_code"):
        raise RecipeError(
            "it runs programs that the model writes, outside of any sandbox",
            where=where,
            fix="Take a task with the metric pass-at-k instead, which runs them in one.",
        )


def _prepare(task: Any, shots: int | None) -> None:
    """What the harness's own command line does to a task."""
    if shots is not None or task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=_SEED)


def _sample(name: str, rows: int, limit: int | None) -> list[int]:
    if limit is None or limit >= rows:
        return list(range(rows))
    drawn: list[int] = Shuffle(rows, [zlib.crc32(name.encode()), _SAMPLE])(np.arange(limit)).tolist()
    return sorted(drawn)


# ---------------------------------------------------------------- our model


def _harnessed(model: Any, encoder: Encoder, batch_size: int, system: str | None) -> Any:
    """The model as the harness asks one."""
    from lm_eval.models.huggingface import HFLM

    class Harnessed(HFLM):
        """Asks behind the very tokens of training.

        The harness itself leaves the options of the chat template alone, and takes white space that ends a prompt, such
        as ChatML's line break, for a part of what is answered, whose nats it then counts.
        """

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:  # the answer has begun
                return str(super().apply_chat_template(chat_history, add_generation_prompt))
            turns = [Turn(message["role"], message["content"]) for message in chat_history]
            return "".join(segment.text for segment in encoder.asked(turns, system))

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            if encoder.template is None:
                found: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
                return found
            [whole] = encoder.tokenise([[Segment(context, supervised=False), Segment(continuation, supervised=True)]])
            ids = list(whole.input_ids)
            return ids[: whole.prompt_tokens], ids[whole.prompt_tokens :]

    tokenizer = copy.deepcopy(encoder.tokenizer)  # it may be given a token for padding
    return Harnessed(
        pretrained=model,
        backend="causal",
        tokenizer=tokenizer,
        batch_size=batch_size,
        softmax_dtype="float32",  # as our own losses are
        mixed_precision_dtype=autocast_dtype(model.dtype, model.device.type),  # it switches off what it is called in
    )


# ---------------------------------------------------------------- what it found


def _scored(task: Any, found: Any, rows: Sequence[int], chat: bool) -> LmEvalTask:
    name = task.task_name
    logged = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    filters = dict.fromkeys(sample["filter"] for sample in logged)
    values = {
        _plain(key): float(value)
        for key, value in found["results"][name].items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    marks = {}
    for which in filters:
        own = [sample for sample in logged if sample["filter"] == which]
        for metric in own[0]["metrics"]:
            if _is_mean(task, metric) and all(_is_score(sample[metric]) for sample in own):
                marks[_plain(f"{metric},{which}")] = [Mark.of(float(sample[metric])) for sample in own]
    first = [sample for sample in logged if sample["filter"] == logged[0]["filter"]]
    answers = [_answer(task, sample) for sample in first]
    version = str(found["versions"].get(name, ""))
    return LmEvalTask(name, version, list(rows), answers, marks, values, chat)


def _plain(key: str) -> str:
    """``"acc,none"`` as ``"acc"``."""
    return key.removesuffix(",none")


def _is_mean(task: Any, metric: str) -> bool:
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric) is mean and bool(task.higher_is_better().get(metric, True))


def _is_score(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number) and 0 <= float(value) <= 1


def _answer(task: Any, sample: Mapping[str, Any]) -> Answer:
    """What was answered to one row."""
    asked, target = sample["arguments"], sample["target"]
    prompt = str(asked[0][0])
    if task.OUTPUT_TYPE == "multiple_choice" and not getattr(task, "multiple_input", False):
        texts = [str(text) for text in task.doc_to_choice(sample["doc"])]
        nats = [-float(answers[0][0]) for answers in sample["resps"][: len(texts)]]
        prior = [-float(answers[0][0]) for answers in sample["resps"][len(texts) :]]
        rights = [texts[right] if isinstance(right, int) else str(right) for right in _listed(target)]
        chosen = texts[int(np.argmin(nats))]
        return Answer(chosen, rights, prompt, {"choices": texts}, nats=nats, prior_nats=prior)
    said = sample["resps"][0][0]
    text = said if isinstance(said, str) else ""
    return Answer(text, [str(right) for right in _listed(target)], prompt)


def _listed(target: Any) -> list[Any]:
    return list(target) if isinstance(target, list | tuple) else [target]
