"""Folders of the shape of the hub's datasets that the shipped mixes name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

TEXT, LABELS = Value("string"), ["A", "B", "C", "D"]
CHOICES = {"text": List(TEXT), "label": List(TEXT)}
ARC = {"id": TEXT, "question": TEXT, "choices": CHOICES, "answerKey": TEXT}
ALPACA = {"instruction": TEXT, "input": TEXT, "output": TEXT, "text": TEXT}
#: Hub datasets: configuration, splits, and the columns with their types, as the hub has them.
HUB: dict[str, tuple[str | None, tuple[str, ...], dict[str, Any]]] = {
    "openlifescienceai/medmcqa": (
        None,
        ("train", "validation"),
        {
            "id": TEXT,
            "question": TEXT,
            **dict.fromkeys(("opa", "opb", "opc", "opd"), TEXT),
            "cop": ClassLabel(names=["a", "b", "c", "d"]),
            **dict.fromkeys(("choice_type", "exp", "subject_name", "topic_name"), TEXT),
        },
    ),
    "ise-uiuc/Magicoder-OSS-Instruct-75K": (
        None,
        ("train",),
        {
            "lang": TEXT,
            "raw_index": Value("int64"),
            "index": Value("int64"),
            "seed": TEXT,
            "openai_fingerprint": TEXT,
            "problem": TEXT,
            "solution": TEXT,
        },
    ),
    "meta-math/MetaMathQA": (
        None,
        ("train",),
        dict.fromkeys(("type", "query", "original_question", "response"), TEXT),
    ),
    "openai/gsm8k": ("main", ("train", "test"), {"question": TEXT, "answer": TEXT}),
    "gbharti/finance-alpaca": (None, ("train",), ALPACA),
    "vicgalle/alpaca-gpt4": (None, ("train",), ALPACA),
    "allenai/ai2_arc": ("ARC-Challenge", ("train", "test"), ARC),
    "tuetschek/e2e_nlg": (None, ("train", "test"), {"meaning_representation": TEXT, "human_reference": TEXT}),
    "ybisk/piqa": (
        None,
        ("train", "validation"),
        {"goal": TEXT, "sol1": TEXT, "sol2": TEXT, "label": ClassLabel(names=["0", "1"])},
    ),
    "allenai/openbookqa": (
        "main",
        ("train", "test"),
        {"id": TEXT, "question_stem": TEXT, "choices": CHOICES, "answerKey": TEXT},
    ),
    "google/boolq": (None, ("train", "validation"), {"question": TEXT, "answer": Value("bool"), "passage": TEXT}),
}
HUB_MIXES = ("inter_domain", "intra_domain")


def _cell(name: str, kind: Any, number: int) -> Any:
    if name == "answerKey":
        return LABELS[number % 4]
    if name == "lang":
        return ("python", "rust")[number % 2]
    if kind == CHOICES:
        return {"text": [f"choice {letter} {number}" for letter in LABELS], "label": LABELS}
    if isinstance(kind, ClassLabel):
        return number % len(kind.names)
    if kind.dtype == "string":
        return f"{name} {number}"
    return number % 2 == 0 if kind.dtype == "bool" else number


def write_hub(folder: Path) -> None:
    """Local folders in the place of the hub's datasets, each of a thousand rows."""
    for identifier, (config, splits, columns) in HUB.items():
        configs = [config, "ARC-Easy"] if config == "ARC-Challenge" else [config]
        for name in configs:
            place = folder / identifier / (name or "")
            place.mkdir(parents=True)
            for part, split in enumerate(splits):
                count = 1000 if split == "train" else 8
                numbers = range(part * 5000, part * 5000 + count)
                rows = [{column: _cell(column, kind, n) for column, kind in columns.items()} for n in numbers]
                dataset = Dataset.from_list(rows, features=Features(columns))
                dataset.to_parquet(str(place / f"{split}-00000-of-00001.parquet"))
        if config:
            listed = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in configs)
            (folder / identifier / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
