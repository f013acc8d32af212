"""Questions with choices in an evaluation: what is printed is what each choice weighs behind its question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from malora_cli.cli._common import read_recipe
from malora_cli.data.encoding import Encoder
from malora_cli.evals import choices as choices_module
from malora_cli.evals.choices import UNASKED
from malora_cli.evals.evaluate import Wanted, evaluate_model
from malora_cli.modeling import load_base, load_tokenizer, resolve_base
from test_choices import alone

ROWS = [
    {"question": f"What rhymes with {word}?", "choices": [f"b{word[1:]}", "ship", "tree house"], "answer": number % 3}
    for number, word in enumerate(("cat", "log", "tin", "fun", "map", "red"))
]


@pytest.fixture
def mix(place: Path) -> Path:
    """Two tasks on the same rows: by letters, and by texts."""
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    common = {"domain": "words", "train": "rows.jsonl", "test": "rows.jsonl", "system": "Rhyme."}
    letters = {**common, "format": "multiple-choice", "metric": "accuracy"}
    texts = {**common, "format": "cloze", "metric": "accuracy-pmi"}
    path = place / "choices.yaml"
    path.write_text(json.dumps({"tasks": {"letters": letters, "texts": texts}}))
    return path


def evaluated(place: Path, mix: Path, **wanted: Any) -> dict[str, list[dict[str, Any]]]:
    """The lines of each task."""
    recipe = read_recipe(str(place / "tiny.yaml"), [f"mix={mix}", "eval.rows=null"]).recipe
    result = evaluate_model(recipe, Wanted(**wanted), mix=mix.name, out=place / "out")
    [path] = (place / "out").glob("*.predictions.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    found = {name: [row for row in rows if row["task"] == name] for name in ("letters", "texts")}
    for name, own in found.items():
        assert result.tasks[name].model.score == pytest.approx(sum(row["model_score"] for row in own) / len(own))
    return found


def test_each_row_is_what_its_choices_weigh(place: Path, mix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluated(place, mix)
    settings = read_recipe(str(place / "tiny.yaml"), []).recipe.model
    base = resolve_base(settings)
    encoder, model = Encoder(load_tokenizer(base, settings)), load_base(base, settings).eval()

    def ids(text: str) -> list[int]:
        return encoder._ids([text], special=False)[0]

    def prompt(question: str) -> list[int]:
        turns = f"<|im_start|>system\nRhyme.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        return ids(f"{turns}<|im_start|>assistant\n")

    for row in found["letters"]:
        own = [alone(model, prompt(row["prompt"]), ids(letter)) for letter in "ABC"]
        assert row["model_choices"] == pytest.approx(own, abs=1e-4)
        assert row["model_score"] == float(own.index(min(own)) == ROWS[row["row"]]["answer"])
    for row in found["texts"]:
        choices = ROWS[row["row"]]["choices"]
        own = [alone(model, prompt(row["prompt"]), ids(text)) for text in choices]
        prior = [alone(model, prompt(UNASKED), ids(text)) for text in choices]
        assert row["model_choices"] == pytest.approx(own, abs=1e-4)
        assert row["model_priors"] == pytest.approx(prior, abs=1e-4)
        gain = [one - other for one, other in zip(own, prior, strict=True)]
        assert row["model_score"] == float(gain.index(min(gain)) == ROWS[row["row"]]["answer"])
    monkeypatch.setattr(choices_module, "token_nats", None)  # nothing is asked twice
    assert evaluated(place, mix, rescore=True) == found
