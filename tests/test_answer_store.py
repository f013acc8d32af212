"""Answers on disk: what is kept of a killed evaluation, and what is never taken for the answer to something else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.tasks import load_tasks
from malora_cli.errors import ModelError, RunError
from malora_cli.evals.evaluate import Silent, Wanted, evaluate_run
from malora_cli.evals.examine import Examiner
from malora_cli.evals.questions import questions_of
from malora_cli.evals.store import Store, answers_root, kept_files, key_of, prune
from malora_cli.evals.subject import Models, Subject
from malora_cli.modeling import load_tokenizer, resolve_base
from malora_cli.recipe import Recipe
from malora_cli.results import RunRecord
from train_runs import Killed, load, rewrite, train_run, workplace

LOTS = [[("a", {"answer": "1"}), ("b", {"answer": "2"})], [("c", {"answer": "½\n"})]]


def kept(path: Path) -> Store:
    store = Store(path)
    with store.writing():
        for lot in LOTS:
            if lot[0][0] not in store.found:
                store.add(lot)
    return store


def test_answers_come_back_as_they_were_kept(tmp_path: Path) -> None:
    written = kept(tmp_path / "x" / "t.jsonl")
    assert Store(written.path).found == {"a": {"answer": "1"}, "b": {"answer": "2"}, "c": {"answer": "½\n"}}
    assert Store(tmp_path / "none.jsonl").found == {}


@pytest.mark.parametrize("cut", range(1, 130, 8))
def test_a_lot_that_a_kill_has_cut_is_made_again_whole(cut: int, tmp_path: Path) -> None:
    path = kept(tmp_path / "t.jsonl").path
    whole = path.read_bytes()
    cut = min(cut, len(whole) - 1)
    path.write_bytes(whole[:-cut])
    lines = whole.splitlines(keepends=True)
    # Of the first lot, nothing is known unless all of it is there.
    expected = {"a", "b"} if cut <= len(lines[2]) else set()
    assert set(Store(path).found) == expected
    with pytest.warns(UserWarning, match="its end was cut by a kill; that lot is made again"):
        kept(path)
    assert path.read_bytes() == whole


def test_a_file_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("")
    with (
        pytest.raises(RunError, match=r"answers cannot be kept \(.*Free some space there"),
        Store(tmp_path / "t" / "x.jsonl").writing(),
    ):
        pass


def test_answers_of_base_models_lie_in_the_cache_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "malora").write_text("")
    with (
        pytest.raises(RunError, match=r"or set XDG_CACHE_HOME to another folder"),
        Store(answers_root() / "b" / "t.jsonl").writing(),
    ):
        pass


def test_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "t.jsonl")
    with pytest.raises(RunError, match="the model's probabilities are not finite"), store.writing():
        store.add([("a", {"loss": [float("nan"), 1]})])
    assert Store(store.path).found == {}


def test_another_file_is_only_read(tmp_path: Path) -> None:
    own = kept(tmp_path / "run" / "t.jsonl").path
    before = own.read_bytes()
    store = Store(tmp_path / "out" / "t.jsonl", own)
    assert set(store.found) == {"a", "b", "c"}
    with store.writing():
        store.add([("d", {"answer": "4"})])
    assert set(store.found) == {"a", "b", "c", "d"}
    assert set(Store(store.path).found) == {"d"}
    assert own.read_bytes() == before


def test_answers_that_nobody_used_for_long_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old, used, written = (kept(answers_root() / name / "t.jsonl").path for name in ("old", "used", "written"))
    for path in (old, used, written):
        os.utime(path, (0, 0))
    assert Store(used).found
    size = old.stat().st_size
    with Store(written).writing():
        os.utime(written, (0, 0))
        assert kept_files() == [old, used, written]
        assert prune(unused_for_seconds=3600) == [size], "the one that is being written stays"
    assert kept_files() == [used, written]
    assert not old.parent.exists()


# ---------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("store"), tiny_model)


@pytest.fixture(scope="module")
def trained(recipe: Path) -> RunRecord:
    return train_run(recipe)


def answers(record: RunRecord, cache: Path) -> dict[str, bytes]:
    """Every file of answers, of the run and of its base."""
    files = [*(record.eval_dir / "answers").rglob("*.jsonl"), *cache.rglob("answers/**/*.jsonl")]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("torn", [False, True])
def test_an_evaluation_that_is_killed_goes_on_to_the_same_file(
    torn: bool, recipe: Path, trained: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(recipe, "eval.batch_size=2").recipe

    def evaluated(name: str, kills: int) -> tuple[dict[str, bytes], dict[str, Any]]:
        record = RunRecord(Path(shutil.copytree(trained.path, tmp_path / name / "runs" / "tiny")))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))
        shutil.copytree(encoded, tmp_path / name / "cache", dirs_exist_ok=True)
        for _ in range(kills):
            with monkeypatch.context() as patch:
                patch.setattr(Store, "add", killed_after(1, torn=torn))
                with pytest.raises(Killed):
                    evaluate_run(record, loaded, Wanted(tasks=["copy", "add"]))
        result = evaluate_run(record, loaded, Wanted(tasks=["copy", "add"]))
        return answers(record, tmp_path / name / "cache"), {n: t.model_dump() for n, t in result.tasks.items()}

    encoded = tmp_path / "encoded"
    encoded.mkdir()
    assert evaluated("killed", kills=5) == evaluated("whole", kills=0)


def killed_after(lots: int, *, torn: bool) -> Callable[[Store, Any], None]:
    """Keeps so many lots; then the process ends, maybe within the one that follows."""
    add, left = Store.add, [lots]

    def keep(store: Store, lot: Any) -> None:
        items = list(lot)
        if left[0] == 0:
            if torn:
                add(store, items)
                store.path.write_bytes(store.path.read_bytes()[:-3])
            raise Killed
        left[0] -= 1
        add(store, items)

    return keep


# ---------------------------------------------------------------- what decides an answer


def keys(recipe: Recipe, adapter: Path | None, change: Callable[[Encoder], None] = lambda _encoder: None) -> set[str]:
    """What the answers of a task would be kept under."""
    base = resolve_base(recipe.model)
    encoder = Encoder(load_tokenizer(base, recipe.model))
    change(encoder)
    [task] = load_tasks(
        recipe.mix.model_copy(update={"tasks": {"add": recipe.mix.tasks["add"]}}), encoder, max_length=99
    )
    models = Models(base, recipe.model, adapter)
    subject = Subject("adapter", models.adapter_key, Path("nowhere"), models)
    examiner = Examiner(subject, encoder, Packer(4), True, Silent())
    return set(examiner._keys(task, task.settings.metric, questions_of(task.test, None)))  # type: ignore[arg-type]


def test_whatever_decides_an_answer_decides_its_key(recipe: Path, trained: RunRecord, tmp_path: Path) -> None:
    other = tmp_path / "adapter"
    shutil.copytree(trained.adapter_dir, other)
    shutil.copy(trained.checkpoint(4) / "adapter_model.safetensors", other / "adapter_model.safetensors")
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}assistant: ")
    own = load(recipe).recipe

    def stops(encoder: Encoder) -> None:
        encoder.stop_texts = ["###"]

    found = {
        "as it is": keys(own, trained.adapter_dir),
        "base": keys(own, None),
        "adapter": keys(own, other),
        "dtype": keys(load(recipe, "model.dtype=bfloat16").recipe, trained.adapter_dir),
        "template": keys(load(recipe, f"model.chat_template={template}").recipe, trained.adapter_dir),
        "stop string": keys(own, trained.adapter_dir, stops),
        "longest answer": keys(load(recipe, "mix.tasks.add.max_new_tokens=9").recipe, trained.adapter_dir),
        "system prompt": keys(load(recipe, "mix.system=Be brief.").recipe, trained.adapter_dir),
    }
    assert found["as it is"] == keys(own, trained.adapter_dir)
    listed = list(found.values())
    assert all(listed)
    assert len(set().union(*listed)) == sum(map(len, listed)), "no two share a key"


def test_files_of_a_model_beside_its_weights_decide_its_key(recipe: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    trusted = load(recipe, f"model.base={folder}", "model.trust_remote_code=true").recipe.model

    def key() -> str:
        return Models(resolve_base(trusted), trusted).base_key

    found = [key()]
    (folder / "modeling_own.py").write_text("WAY = 1")
    found.append(key())
    (folder / "modeling_own.py").write_text("WAY = 2")
    found.append(key())
    rewrite(folder / "generation_config.json", lambda config: config.update(eos_token_id=[1, 2]))
    found.append(key())
    assert len(set(found)) == len(found)


def test_an_adapter_that_is_replaced_meanwhile_is_not_taken_for_the_one_before(
    recipe: Path, trained: RunRecord, tmp_path: Path
) -> None:
    own, folder = load(recipe).recipe, Path(shutil.copytree(trained.adapter_dir, tmp_path / "adapter"))
    models = Models(resolve_base(own.model), own.model, folder)
    assert models.adapter_key
    shutil.copy(trained.checkpoint(4) / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    with pytest.raises(RunError, match="the adapter was rewritten in the meantime"):
        _ = models.loaded


def test_an_adapter_without_its_base_says_where_to_name_it(recipe: Path, trained: RunRecord, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.adapter_dir, tmp_path / "adapter"))
    settings = load(recipe).recipe.model.model_copy(update={"base": str(folder)})
    for base, what in ((None, "does not say which model"), ("gone.gguf", "GGUF file not found")):
        rewrite(folder / "adapter_config.json", lambda config, base=base: config.update(base_model_name_or_path=base))
        with pytest.raises(ModelError, match=rf"{what}.*Write into .*adapter_config\.json, as base_model_name_or_path"):
            Models.named(settings)


class Counted(Silent):
    """Counts the rows that it was told of."""

    def __init__(self) -> None:
        self.wanted = self.told = 0

    def begin(self, subject: str, task: str, rows: int) -> None:
        self.wanted += rows

    def answered(self, rows: int) -> None:
        self.told += rows


def test_progress_is_told_of_each_row_once(recipe: Path, trained: RunRecord, tmp_path: Path) -> None:
    own = load(recipe).recipe
    for limit in (2, 4, 4):  # some answers are known, then all
        progress = Counted()
        evaluate_run(trained, own, Wanted(tasks=["add"], limit=limit, progress=progress), out=tmp_path)
        assert progress.told == progress.wanted == 2 * limit


def test_keys_tell_their_parts_apart() -> None:
    assert len({key_of("a", "b"), key_of("ab"), key_of(["a", "b"]), key_of("a", ["b"])}) == 4
    assert json.dumps(key_of(1)) == json.dumps(key_of(1))
