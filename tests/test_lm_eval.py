"""Tasks of lm-evaluation-harness on a model of ours, and our choices against its."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from malora_cli.cli._common import read_recipe
from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.tasks import load_tasks
from malora_cli.errors import DataError, RecipeError, RunError
from malora_cli.evals import lm_eval as lm_eval_module
from malora_cli.evals.choices import choice_nats
from malora_cli.evals.lm_eval import lm_eval_task
from malora_cli.evals.metrics import METRICS
from malora_cli.evals.metrics._base import Answer
from malora_cli.evals.questions import questions_of
from malora_cli.modeling import load_base, load_tokenizer, resolve_base, wrap
from presets import settings
from test_choices import alone
from tiny_models import randomise

pytest.importorskip("lm_eval")

ROWS = [
    {"question": "What melts ice?", "choices": ["cold", "heat from the sun", "salt", "a"], "answer": 1},
    {"question": "Which is largest?", "choices": ["An ant", "A mouse", "A whale, of course"], "answer": 2},
    {"question": "Où coule la Seine ?", "choices": ["à Paris", "a Rome"], "answer": 0},
    {"question": "Pick one.", "choices": ["heat", "heating", "heat"], "answer": 0},
    {"question": "What is needed to see an object? " * 3, "choices": ["light", "x"], "answer": 0},
]
TASK: dict[str, Any] = {
    "task": "tiny_arc",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": metric} for metric in ("acc", "acc_norm", "acc_bytes")],
}
OURS = {"acc": "accuracy", "acc_norm": "accuracy-norm", "acc_bytes": "accuracy-bytes"}


def task_file(folder: Path, **changes: Any) -> str:
    """A task of the harness on the rows, as a file."""
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({**TASK, "dataset_kwargs": {"data_files": {"test": str(rows)}}, **changes}))
    return str(path)


@pytest.fixture
def asked(place: Path) -> tuple[Any, Encoder]:
    """A model with a random adapter, and its encoder."""
    model = read_recipe(str(place / "tiny.yaml"), []).recipe.model
    base = resolve_base(model)
    wrapped = wrap(load_base(base, model), settings("malora"))
    randomise(wrapped)
    return wrapped, Encoder(load_tokenizer(base, model))


def weighed(place: Path, model: Any, encoder: Encoder) -> list[Answer]:
    """The rows as a task of our own."""
    own = {"train": "rows.jsonl", "test": "rows.jsonl", "domain": "d", "format": "cloze", "metric": "accuracy"}
    (place / "own.yaml").write_text(json.dumps({"tasks": {"own": own}}))
    mix = read_recipe(str(place / "tiny.yaml"), [f"mix={place / 'own.yaml'}"]).recipe.mix
    [task] = load_tasks(mix, encoder, max_length=512)
    questions = questions_of(task.test, None)
    lots = choice_nats(model, [q.prompt_ids for q in questions], [q.choices for q in questions], batch=Packer(8))
    found = [weights for lot in lots for _, weights in lot]
    return [
        Answer("", question.references, question.prompt, question.facts, nats=weights.nats)
        for question, weights in zip(questions, found, strict=True)
    ]


def test_half_precision_is_mixed_as_in_training(place: Path) -> None:
    model = read_recipe(str(place / "tiny.yaml"), ["model.dtype=bfloat16"]).recipe.model
    base = resolve_base(model)
    wrapped = wrap(load_base(base, model), settings("malora")).eval()
    randomise(wrapped)
    formats = set[tuple[bool, torch.dtype]]()

    def look(*_: Any) -> None:
        formats.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))

    wrapped.get_base_model().register_forward_pre_hook(look)
    [found] = lm_eval_task(task_file(place), wrapped, Encoder(load_tokenizer(base, model)))
    assert formats == {(True, torch.bfloat16)}
    nats = [value for answer in found.answers for value in answer.nats]
    assert any(value != torch.tensor(value).bfloat16().item() for value in nats), "they are summed in float32"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_our_choices_are_the_harness_s_row_by_row(place: Path, asked: tuple[Any, Encoder], batch_size: int) -> None:
    model, encoder = asked
    [found] = lm_eval_task(task_file(place), model, encoder, batch_size=batch_size)
    ours = weighed(place, model, encoder)
    assert (found.name, found.rows, found.chat) == ("tiny_arc", [0, 1, 2, 3, 4], True)
    for own, theirs in zip(ours, found.answers, strict=True):
        assert own.nats == pytest.approx(theirs.nats, abs=1e-3)
        assert own.facts["choices"] == theirs.facts["choices"]
        assert list(own.references) == list(theirs.references)
        assert theirs.prompt == f"<|im_start|>user\n{own.prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert list(found.marks) == list(OURS)
    for theirs_name, our_name in OURS.items():
        assert found.marks[theirs_name] == METRICS[our_name]().marks(ours)
        scores = [mark.score for mark in found.marks[theirs_name]]
        assert found.values[theirs_name] == pytest.approx(sum(scores) / len(scores))
    assert model.training  # as it was


def test_the_harness_alone_counts_the_line_break_that_ends_a_prompt_and_chooses_the_same(
    place: Path, asked: tuple[Any, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    model, encoder = asked
    monkeypatch.setattr(
        lm_eval_module,
        "_harnessed",
        lambda *_: HFLM(pretrained=model, backend="causal", tokenizer=encoder.tokenizer, batch_size=4),
    )
    [found] = lm_eval_task(task_file(place), model, encoder)
    ours = weighed(place, model, encoder)
    for own, theirs in zip(ours, found.answers, strict=True):
        apart = [their - our for our, their in zip(own.nats, theirs.nats, strict=True)]
        assert min(apart) > 0.1
        assert apart == pytest.approx([apart[0]] * len(apart), abs=1e-3)
    assert found.marks["acc"] == METRICS["accuracy"]().marks(ours)


def test_a_model_without_a_chat_template(place: Path, asked: tuple[Any, Encoder]) -> None:
    model, encoder = asked
    encoder.tokenizer.chat_template = None
    [found] = lm_eval_task(task_file(place), model, Encoder(encoder.tokenizer))
    assert (found.chat, found.answers[0].prompt) == (False, "What melts ice?")
    ids = [encoder._ids([text], special=False)[0] for text in ("What melts ice?", " salt")]
    assert found.answers[0].nats[2] == pytest.approx(alone(model.eval(), *ids), abs=1e-3)


def test_a_sample_is_a_part_of_a_larger_one_and_rows_keep_their_numbers(
    place: Path, asked: tuple[Any, Encoder]
) -> None:
    model, encoder = asked
    file = task_file(place)
    [whole] = lm_eval_task(file, model, encoder)
    samples = [lm_eval_task(file, model, encoder, limit=limit)[0] for limit in (2, 3)]
    assert set(samples[0].rows) < set(samples[1].rows)
    for sample in samples:
        assert [answer.nats for answer in sample.answers] == [
            pytest.approx(whole.answers[row].nats, abs=1e-4) for row in sample.rows
        ]


def test_a_system_prompt_is_that_of_training(place: Path, asked: tuple[Any, Encoder]) -> None:
    [found] = lm_eval_task(task_file(place), *asked, limit=1, system="Be brief.")
    assert found.answers[0].prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_generated_answers(place: Path, asked: tuple[Any, Encoder]) -> None:
    changes = {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "doc_to_choice": None,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}, {"metric": "chrf"}],
    }
    [found] = lm_eval_task(task_file(place, **changes), *asked)
    assert list(found.marks) == ["exact_match"]
    assert set(found.values) == {"exact_match", "chrf"}  # of all rows together
    assert [answer.references for answer in found.answers] == [[row["choices"][row["answer"]]] for row in ROWS]  # type: ignore[index]


def test_prompts_that_are_cut_are_told(place: Path, asked: tuple[Any, Encoder]) -> None:
    file, logger = task_file(place, doc_to_text="{{question * 40}}"), logging.getLogger("lm_eval")
    before = (list(logger.handlers), logger.propagate)
    with pytest.warns(UserWarning, match=r"task\.yaml: \d+ prompts were cut on the left"):
        lm_eval_task(file, *asked)
    assert (logger.handlers, logger.propagate) == before


# ---------------------------------------------------------------- refusals


def test_tasks_that_run_code_are_refused_before_their_rows_are_loaded(place: Path, asked: tuple[Any, Encoder]) -> None:
    with pytest.raises(RecipeError, match=r"runs programs that the model writes.*pass-at-k"):
        lm_eval_task(task_file(place, unsafe_code=True, dataset_path="nowhere/none"), *asked)
    with pytest.raises(RecipeError, match="lm_eval:humaneval: it runs programs"):
        lm_eval_task("humaneval", *asked)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"dataset_path": "nowhere/none"}, DataError, "the task cannot be loaded"),
        ({"test_split": "tests"}, DataError, "cannot be loaded"),
        ({"task": None}, (RecipeError, DataError), "task.yaml: the"),
    ],
)
def test_a_task_that_cannot_be_loaded(
    changes: dict[str, Any], error: type[Exception], told: str, place: Path, asked: tuple[Any, Encoder]
) -> None:
    with pytest.raises(error, match=told) as caught:
        lm_eval_task(task_file(place, **changes), *asked)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(asked: tuple[Any, Encoder]) -> None:
    with pytest.raises(RecipeError, match=r"lm_eval:none/task\.yaml: file not found"):
        lm_eval_task("none/task.yaml", *asked)


def test_the_index_is_parsed_for_names_alone_that_no_file_has(
    place: Path, asked: tuple[Any, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    wanted: list[bool] = []

    class Manager:
        task_index, all_tasks = {"arc_easy": None}, ["arc_easy"]

        def __init__(self, include_defaults: bool) -> None:
            wanted.append(include_defaults)

        def load(self, names: list[str]) -> Any:
            raise ValueError(names[0])

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Manager)
    with pytest.raises(DataError, match=r"arc_easy\.yaml"):
        lm_eval_task("arc_easy", *asked)
    with pytest.raises(RecipeError, match="no task 'arc_easi'; did you mean 'arc_easy'"):
        lm_eval_task("arc_easi", *asked)
    assert wanted == [False, True]


def test_without_the_package(asked: tuple[Any, Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"pip install 'malora\[lm-eval\]'"):
        lm_eval_task("arc_easy", *asked)
