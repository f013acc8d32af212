"""The `evaluate` package: metrics of ours as metrics of its, and modules of the user's own as metrics of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from malora_cli.cli import main
from malora_cli.errors import DataError
from malora_cli.evals.metrics import METRICS, as_evaluate
from malora_cli.evals.metrics._base import Answer
from malora_cli.results import RunRecord
from malora_cli.train.resuming import grants, resume_command
from train_runs import refused, workplace

MODULE = """
import datasets
import evaluate

open("{here}/ran", "w").close()


class Mine(evaluate.Metric):
    def _info(self):
        references = {references}
        features = datasets.Features({{"predictions": datasets.Value("string"), "references": references}})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, bonus=0):
        rows = zip(predictions, references)
        {compute}
"""
ONE, LIST = 'datasets.Value("string")', 'datasets.Sequence(datasets.Value("string"))'
SHARE = "return {'hits': sum(p == r for p, r in rows) / len(predictions) + bonus}"


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Writes a module and gives it as a metric."""

    def write(compute: str, references: str = ONE, **options: Any) -> Any:
        number = len(list(tmp_path.glob("*.py")))
        path = tmp_path / f"mine{number}.py"
        path.write_text(MODULE.format(here=tmp_path, references=references, compute=compute))
        return METRICS["evaluate"](path=str(path), **options)

    return write


def scores(metric: Any) -> list[float]:
    rows = [Answer("a", ["b", "a"]), Answer("b", ["a"]), Answer("c", ["c"])]
    return [mark.score for mark in metric.marks(rows)]


@pytest.mark.parametrize(
    ("compute", "references", "options", "expected"),
    [
        (SHARE, ONE, {}, [1, 0, 1]),
        ("return {'each': [float(p == r) for p, r in rows], 'n': 1}", ONE, {"key": "each"}, [1, 0, 1]),
        ("return {'hits': 100 * sum(p in r for p, r in rows) / len(predictions)}", LIST, {"scale": 100}, [1, 0, 1]),
        ("return {'each': [1 / (1 + len(r)) for p, r in rows]}", LIST, {}, [1 / 3, 1 / 2, 1 / 2]),
        (SHARE.replace("sum", "0.5 * sum"), ONE, {"arguments": {"bonus": 0.25}}, [0.75, 0.25, 0.75]),
    ],
)
def test_a_module_of_ones_own(
    compute: str, references: str, options: dict[str, Any], expected: list[float], own: Any
) -> None:
    metric = own(compute, references, **options)
    assert scores(metric) == pytest.approx(expected)
    assert metric.reads("a")


@pytest.mark.parametrize(
    ("compute", "options", "told"),
    [
        ("return {'f1': 1.0, 'ppv': 1.0}", {}, "it computes f1, ppv, and nothing says which of these is the score"),
        ("return {'f1': 1.0}", {"key": "f"}, "it computes no 'f'; did you mean 'f1'?"),
        ("return {'f1': 31.5}", {}, "its score is 31.5, and scores go from 0 to 1. Give its highest as `scale`"),
        ("return {'f1': float('nan')}", {}, "its score is nan, and scores go from 0 to 1"),
        ("return {'f1': 'good'}", {}, "its score is 'good', and one number for each row is wanted"),
        ("return {'f1': [1.0]}", {}, "it computes 1 scores of 4 answers"),
        ("raise KeyError('x')", {}, "the metric's code fails (KeyError: 'x')"),
        ("return {'f1': 1.0}", {"arguments": {"case": True}}, "the metric's code fails (TypeError: "),
        (")", {}, "the metric's code fails (SyntaxError: "),
    ],
)  # fmt: skip
def test_what_a_module_does_wrong_is_told_in_a_line(compute: str, options: dict[str, Any], told: str, own: Any) -> None:
    metric = own(compute, **options)
    with pytest.raises(DataError) as caught:
        scores(metric)
    assert str(caught.value).startswith(f"{metric.path}: {told}")
    assert "\n" not in str(caught.value)


def test_a_metric_of_the_hub_is_not_asked_for() -> None:
    with pytest.raises(DataError, match=r"^rouge: file not found\. Metrics of the hub are not fetched"):
        METRICS["evaluate"](path="rouge").reads("a")


def test_a_module_is_shown_by_the_name_of_its_file() -> None:
    assert str(METRICS["evaluate"](path="/home/me/mine.py", key="f1")) == "evaluate:mine.py (key: f1)"
    assert METRICS["evaluate"](path="/home/me/mine.py").code == "/home/me/mine.py"


def test_a_module_that_fails_is_told_of_before_anything_is_trained(
    own: Any, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "place").mkdir()
    recipe = str(workplace(tmp_path / "place", tiny_model))
    asked = ["check", recipe, "--no-step", f"mix.tasks.add.metric=evaluate:{own('raise KeyError(7)').path}"]
    assert "mine0.py; if you trust it, set eval.trust_metric_code to true" in refused(asked, capsys)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SystemExit) as caught:
        main([*asked, "eval.trust_metric_code=true"])
    assert caught.value.code == 2
    told, line = capsys.readouterr().err.strip().splitlines()
    assert told == f"trust_metric_code: Python code of {tmp_path}/mine0.py is run"
    assert line == f"error: {tmp_path}/mine0.py: the metric's code fails (KeyError: 7). Mend it."
    assert (tmp_path / "ran").exists()


def test_commands_that_a_run_suggests_grant_what_it_was_granted(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    record.write_recipe(yaml.safe_dump({"model": {"trust_remote_code": True}, "eval": {"trust_metric_code": True}}))
    assert grants(record) == ["--trust-remote-code", "eval.trust_metric_code=true"]
    assert resume_command(record).endswith(" --resume --trust-remote-code eval.trust_metric_code=true")
    record.write_recipe(yaml.safe_dump({"model": {"trust_remote_code": False}, "eval": {}}))
    assert grants(record) == []


# ---------------------------------------------------------------- ours as those of the package


@pytest.mark.parametrize("name", sorted(name for name, metric in METRICS.items() if metric.kind == "generation"))
def test_every_metric_can_be_had_as_one_of_evaluate(name: str, own: Any) -> None:
    if METRICS[name].needs:
        pytest.skip("it wants more than texts")
    options = {"path": own(SHARE).path} if name == "evaluate" else {}
    texts, references = ["5 a=1", "{}", "B"], [["6", "5 a=1"], ["{}"], ["C"]]
    metric = METRICS[name](**options)
    marks = metric.marks([Answer(text, rights) for text, rights in zip(texts, references, strict=True)])
    computed = as_evaluate(name, **options).compute(predictions=texts, references=references)
    assert computed == {name: metric.measured(marks).score, "unread": sum(mark.unread for mark in marks) / 3}
    one = as_evaluate(name, **options).compute(predictions=texts[1:], references=["{}", "C"])
    assert one[name] == metric.measured(marks[1:]).score or name == "macro-f1"


@pytest.mark.parametrize(
    ("name", "columns", "score"),
    [("accuracy", {}, 0.5), ("accuracy-norm", {}, 1), ("accuracy-pmi", {"prior_nats": [[1.0, 3.0], [2.0, 3.5]]}, 0.5)],
)
def test_choices_can_be_scored_by_evaluate(name: str, columns: dict[str, Any], score: float) -> None:
    nats, choices = [[2.0, 1.0], [3.0, 2.5]], [["cold", "heat"], ["a cold wind", "it"]]
    rights = ["heat", "a cold wind"]
    computed = as_evaluate(name).compute(predictions=nats, references=rights, choices=choices, **columns)
    assert computed == {name: score, "unread": 0}


def test_likelihoods_can_be_scored_by_evaluate() -> None:
    computed = as_evaluate("likelihood").compute(predictions=[1.0, 2.0], references=["ab", "c"])
    assert computed == {"likelihood": pytest.approx(0.36787944), "unread": 0}
    with pytest.raises(KeyError, match="unknown metric 'rouge-3'; did you mean 'rouge-"):
        as_evaluate("rouge-3")


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scores.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    imported, call, result = re.fullmatch(r"(.*)\n\n(.*)\n# (.*)\n", block).groups()  # type: ignore[union-attr]
    scope: dict[str, object] = {}
    exec(imported, scope)
    assert eval(call, scope) == eval(result)
