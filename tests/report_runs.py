"""Synthetic runs and a parser of report pages, for the tests of the reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import yaml

from malora_cli.reports import write_report
from malora_cli.results import (
    ConflictEvent,
    EvalEvent,
    EvalResult,
    ExpertGeometry,
    GradientConflict,
    Manifest,
    ProjectionGeometry,
    RunRecord,
    RunStatus,
    Scores,
    TaskData,
    TaskEval,
    TaskLoss,
    TrainEvent,
    write_text,
)
from malora_cli.results.evaluation import Difference

TASKS = {"sums": "arithmetic", "reverse_words": "strings", "cipher": "strings"}
RECIPE = {
    "model": {"base": "tiny", "revision": None, "trust_remote_code": False},
    "method": {"name": "malora", "r": 12, "target_modules": ["q_proj", "v_proj"]},
    "mix": {"description": "Three tasks.", "tasks": {"sums": {"domain": "arithmetic", "system": ""}}},
    "train": {"steps": 100, "learning_rate": 0.002},
}
# Held-out nats a token by task at steps 0, 50 and 100: `sums` gets worse at the end, the others only better.
HELD_OUT = {"sums": (4.0, 0.5, 0.9), "reverse_words": (3.0, 2.0, 1.25), "cipher": (2.0, 1.5, 1.49)}
STEPS = (0, 50, 100)


class Page(HTMLParser):
    """A parsed page: the text and the table rows of every section, and everything that a browser might load."""

    void = frozenset({"meta", "link", "img", "input", "br", "hr", "wbr", "base", "embed", "source"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.style = source, ""
        self.texts: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._section, self._open = "", list[str]()
        self.feed(source)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.texts[self._section], self.rows[self._section] = "", []
        elif tag == "tr":
            self.rows[self._section].append([])
        elif tag in ("td", "th"):
            self.rows[self._section][-1].append("")
        elif self._section and tag in ("p", "div", "dd", "dt", "figure", "li", "span"):
            self._add(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "elements are closed in order"
        self._section = "" if tag == "section" else self._section

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        elif self._section:
            self._add(data)

    def _add(self, data: str) -> None:
        self.texts[self._section] += data
        if "td" in self._open or "th" in self._open:
            self.rows[self._section][-1][-1] += data

    def text(self, section: str) -> str:
        return " ".join(self.texts[section].split())

    def row(self, section: str, head: str) -> list[str]:
        """Cells of the one row whose first cell ends with ``head``, which may follow a task's mark."""
        cells = [[" ".join(cell.split()) for cell in row] for row in self.rows[section]]
        (found,) = [row for row in cells if row and re.sub(r"^[●■▲◆▼★✚✖]\ufe0e? ?", "", row[0]) == head]
        return found[1:]


def loss(nats_a_token: float, *, tokens: int = 200, stderr: float | None = None) -> TaskLoss:
    return TaskLoss(nats=nats_a_token * tokens, tokens=tokens, examples=10, stderr_nats=stderr)


def manifest(tasks: dict[str, str], **changes: object) -> Manifest:
    data = {name: TaskData(source=f"{name}.jsonl", rows=400, sha256="0a" * 32) for name in tasks}
    values: dict[str, object] = {
        "status": RunStatus.FINISHED,
        "created": "2026-01-02T03:04:05+00:00",
        "steps": 100,
        "method": "malora",
        "base_model": "tiny",
        "base_model_sha256": "b1" * 32,
        "trainable_parameters": 2_500_000,
        "base_parameters": 100_000_000,
        "seeds": {"train": 7},
        "versions": {"malora": "0.1.0", "torch": "2.9.1"},
        "train_data": data,
        "validation_data": {name: TaskData(source=f"{name}.jsonl", rows=20, sha256="0b" * 32) for name in tasks},
        "test_data": {name: TaskData(source=f"{name}.test", rows=80, sha256="0c" * 32) for name in tasks},
        "domains": tasks,
        "task_share": {name: 1 / len(tasks) for name in tasks},
        "train_seconds": 372.0,
        **changes,
    }
    return Manifest.model_validate(values)


def held_out(record: RunRecord, losses: dict[str, tuple[float, ...]] = HELD_OUT, **kinds: float | None) -> None:
    for index, step in enumerate(STEPS):
        tasks = {name: loss(values[index], stderr=kinds.get("stderr")) for name, values in losses.items()}
        record.metrics.append(EvalEvent(step=step, seconds=1.0, tasks=tasks))


def training(record: RunRecord, tasks: dict[str, str], *, routed: bool = False) -> None:
    for step in range(10, 101, 10):
        record.metrics.append(
            TrainEvent(
                step=step,
                seconds=float(step),
                tasks={name: loss(2.0) for name in tasks},
                learning_rate=1e-3,
                tokens_per_second=100.0,
                balance_loss=1 + 2.345 / step if routed else None,
                expert_share={"layers 0-3": [0.4, 0.1, 0.25, 0.25]} if routed else None,
            )
        )


def evaluation(tasks: dict[str, str], *, created: str = "2026-01-02T04:00:00+00:00", **changes: object) -> EvalResult:
    scores = {"sums": (0.0, 0.5), "reverse_words": (0.1, 0.9), "cipher": (0.3, 0.2)}
    evaluated = {
        name: TaskEval(
            domain=domain,
            metric="exact-match",
            rows=100,
            base=Scores(score=scores.get(name, (0.0, 1.0))[0], loss=3.0),
            adapter=Scores(score=scores.get(name, (0.0, 1.0))[1], loss=1.5),
        )
        for name, domain in tasks.items()
    }
    values = {"run": "r", "created": created, "step": 100, "limit": None, "seconds": 9.0, "tasks": evaluated, **changes}
    return EvalResult.model_validate(values)


def projection(similarity: float | None, rank: float, of: float = 96) -> ProjectionGeometry:
    return ProjectionGeometry(similarity=similarity, effective_rank=rank, rank=of, spectrum=[2.0, 1.0, 0.0])


def geometry(similarity: float | None = 0.75, *, target: str = "q_proj") -> ExpertGeometry:
    up = None if similarity is None else 0.05
    sides = {"down": projection(similarity, 24), "up": projection(up, 72)}
    return ExpertGeometry(groups={"layers 0-3": {target: sides, "up_proj": sides}})


def conflict(tasks: dict[str, str], cosine: float = -0.25) -> ConflictEvent:
    """Gradients of which each pair has the same cosine."""
    count = len(tasks)
    matrix = [[1.0 if a == b else cosine for b in range(count)] for a in range(count)]
    compared = GradientConflict(cosine=matrix, magnitude=matrix, norm=[2.0] * count)
    return ConflictEvent(
        step=100, cost_seconds=1.5, rows=4, tasks=list(tasks), groups={"all": compared, "lora_A": compared}
    )


def bare_run(folder: Path) -> RunRecord:
    """A run that got as far as its manifest and recipe."""
    record = RunRecord(folder / "runs" / "trial")
    record.write_manifest(manifest(TASKS))
    record.write_recipe(yaml.safe_dump(RECIPE, sort_keys=False))
    return record


def full_run(folder: Path) -> RunRecord:
    """A run with everything a report can show."""
    record = bare_run(folder)
    sums = {"domain": "arithmetic", "system": "", "loss_weight": 2.0}
    adapted = {
        "mix": {"description": "Three tasks.", "weighting": "uniform", "tasks": {"sums": sums}},
        "remedies": {"patience": {"evaluations": 1}},
    }
    record.write_recipe(yaml.safe_dump({**RECIPE, **adapted}, sort_keys=False))
    said = {"remedies": {"patience": "Each task has an end.", "other": "Something else is done."}}
    record.write_manifest(record.manifest.model_copy(update=said))
    training(record, TASKS, routed=True)
    adapts = {
        "task_share": {"sums": 0.75, "reverse_words": 0.0, "cipher": 0.25},
        "loss_weight": dict.fromkeys(TASKS, 0.5),
    }
    newest = record.metrics.train()[-1]
    record.metrics.append(newest.model_copy(update={"step": newest.step, "tasks": {}, **adapts}))
    held_out(record, stderr=0.1)
    record.metrics.append(conflict(TASKS))
    load = {name: {"layers 0-3": [0.5, 0.1, 0.15, 0.25]} for name in TASKS}
    load["cipher"] = {"layers 0-3": [0.25, 0.25, 0.25, 0.25]}
    entropy = {name: {"layers 0-3": 0.8} for name in TASKS}
    evaluation(TASKS, expert_load=load, gate_entropy=entropy).save(record.eval_dir / "a.json")
    keep_answers(record, [answer("sums", 1, 0, 1), answer("cipher", 2, 1, 0)])
    geometry().save(record.experts_path)
    return record


def page(record: RunRecord) -> Page:
    return Page(write_report(record).read_text(encoding="utf-8"))


def judged(tasks: dict[str, str] = TASKS, **changes: object) -> EvalResult:
    """An evaluation with intervals and differences: sums is gained, reverse_words lost, cipher the same."""
    differences = {
        "sums": Difference(value=0.5, low=0.4, high=0.6, p=1e-9, p_holm=3e-9, wins=50, ties=50, detectable=0.1),
        "reverse_words": Difference(value=-0.2, low=-0.3, high=-0.1, p=0.01, p_holm=0.02, wins=1, ties=78, losses=21),
        "cipher": Difference(
            value=0.02, low=-0.05, high=0.09, p=0.6, p_holm=0.6, wins=8, ties=86, losses=6, detectable=0.098
        ),
    }
    scores = {"sums": (0.0, 0.5), "reverse_words": (0.9, 0.7), "cipher": (0.3, 0.32)}
    unread = {"sums": (0.25, 0.004), "reverse_words": (0.0, 0.0), "cipher": (0.0, 0.0)}

    def side(name: str, which: int) -> Scores:
        score = scores[name][which]
        ends = {"low": max(score - 0.08, 0.0), "high": score + 0.09}
        return Scores(score=score, **ends, loss=3.0 - which, bits_per_byte=1.25 - which, unread=unread[name][which])

    evaluated = {
        name: TaskEval(
            domain=domain,
            metric="exact-match",
            rows=100,
            clusters=100,
            model=side(name, 1),
            against=side(name, 0),
            difference=differences[name],
        )
        for name, domain in tasks.items()
    }
    return evaluation(tasks, **changes).model_copy(update={"tasks": evaluated})


def answer(task: str, row: int, base: float, adapter: float, /, **more: object) -> dict[str, object]:
    """A line of an evaluation's predictions."""
    texts = {"prompt": f"question {row}", "reference": "right", "base": f"said {base}", "adapter": f"said {adapter}"}
    return {"task": task, "row": row, **texts, "base_score": base, "adapter_score": adapter, **more}


def keep_answers(record: RunRecord, lines: Iterable[dict[str, object]], name: str = "a") -> None:
    """Write what was answered in the evaluation NAME.json."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(record.eval_dir / f"{name}.predictions.jsonl", text)
