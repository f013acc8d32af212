"""Answers, scores, and the base model beside the adapter on the same rows."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from malora_cli.data.batch import Packer, collate
from malora_cli.data.encoding import Encoder
from malora_cli.data.tasks import in_lots, load_tasks
from malora_cli.errors import DataError, RecipeError, RunError
from malora_cli.evals.choosing import choose_tasks
from malora_cli.evals.evaluate import Silent, Wanted, evaluate_run
from malora_cli.evals.metrics import METRICS
from malora_cli.evals.predict import predict
from malora_cli.modeling import load_adapter, load_base, load_tokenizer, resolve_base
from malora_cli.modeling.heldout import held_out
from malora_cli.results import EvalResult, RunRecord
from train_runs import load, rewrite, train_run, workplace


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def talker(tiny_model: Path) -> PreTrainedModel:
    """The tiny model with weights large enough that its answers depend on the prompt."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def greedy(model: PreTrainedModel, prompt: Sequence[int], *, stops: Sequence[int], length: int) -> list[int]:
    """One token after another, the whole text anew for each: no cache, no padding, no mask."""
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            token = int(model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def stopping_at(tokenizer: PreTrainedTokenizerBase, stops: list[int]) -> Encoder:
    """An encoder by which these tokens end an answer."""
    encoder = Encoder(tokenizer)
    encoder.stop_ids = stops  # in the place of what its template says
    return encoder


# ---------------------------------------------------------------- predict


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batched_answers_are_those_of_single_prompts_in_order(
    talker: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    texts = [f"{'word ' * (7 * number % 5)}{number}" for number in range(8)]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    assert len({len(prompt) for prompt in prompts}) > 2
    stops = [0, tokenizer.eos_token_id]
    expected = [decoded(tokenizer, greedy(talker, prompt, stops=stops, length=9)) for prompt in prompts]
    assert len(set(expected)) > 4  # the answers tell the prompts apart
    answers = predict(talker, stopping_at(tokenizer, stops), prompts, max_new_tokens=9, batch=Packer(batch_size))
    assert answers == expected


def test_an_answer_ends_at_any_stop_token_or_at_its_longest(
    talker: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = [tokenizer(f"prompt {number}")["input_ids"] for number in range(12)]
    free = [greedy(talker, prompt, stops=[], length=6) for prompt in prompts]
    # Neither special nor part of a character, so that it would be seen if it were left in an answer.
    stop = next(
        token for ids in free for token in ids[2:] if len(text := tokenizer.decode(token)) == 1 and text.isascii()
    )
    assert stop not in tokenizer.all_special_ids

    def answers(stop_ids: list[int], longest: int) -> list[str]:
        return predict(talker, stopping_at(tokenizer, stop_ids), prompts, max_new_tokens=longest, batch=Packer(5))

    def cut(ids: list[int], stops: list[int], length: int) -> str:
        ends = [at for at, token in enumerate(ids[:length]) if token in stops]
        return decoded(tokenizer, ids[: min([*ends, length])])

    expected = [cut(ids, [0, stop], 6) for ids in free]
    assert expected != [cut(ids, [0], 6) for ids in free]
    assert answers([0, stop], 6) == expected
    assert answers([0], 4) == [cut(ids, [0], 4) for ids in free]


def test_what_a_model_ships_for_sampling_does_not_count(
    talker: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = [tokenizer("again and again")["input_ids"]]
    expected = decoded(tokenizer, greedy(talker, prompts[0], stops=[], length=12))
    own = talker.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.num_beams = True, 0.9, 5.0, 3
    own.no_repeat_ngram_size, own.max_length = 1, 4
    answers = predict(talker, Encoder(tokenizer), prompts, max_new_tokens=12, batch=Packer(1))
    assert answers == [expected]
    assert talker.generation_config is own
    assert own.repetition_penalty == 5.0


def test_special_tokens_are_no_part_of_an_answer(talker: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = tokenizer("x")["input_ids"]
    first = greedy(talker, prompt, stops=[], length=1)[0]
    with torch.no_grad():  # the model now says <|im_start|> instead
        talker.lm_head.weight[1] = talker.lm_head.weight[first] * 1.1
    assert greedy(talker, prompt, stops=[], length=1) == [1]
    answer = predict(talker, Encoder(tokenizer), [prompt], max_new_tokens=5, batch=Packer(1))[0]
    assert "im_start" not in answer


def test_no_prompts_are_no_answers(talker: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert predict(talker, Encoder(tokenizer), [], max_new_tokens=5, batch=Packer(4)) == []


# ---------------------------------------------------------------- metrics


def test_exact_match_is_blind_to_white_space_around_and_to_nothing_else() -> None:
    pairs = [("5", "5", 1.0), (" 5\n", "5", 1.0), ("5", "\t5 ", 1.0), ("5.", "5", 0.0), ("a  b", "a b", 0.0)]
    pairs += [("A", "a", 0.0), ("", " ", 1.0), ("5 5", "5", 0.0)]
    predictions, references, expected = zip(*pairs, strict=True)
    assert METRICS["exact-match"]().scores(predictions, [[reference] for reference in references]) == list(expected)


def test_a_metric_wants_a_reference_for_every_prediction() -> None:
    with pytest.raises(ValueError, match="shorter"):
        METRICS["exact-match"]().scores(["a", "b"], [["a"]])


# ---------------------------------------------------------------- the evaluation of a run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("evals"), tiny_model)


@pytest.fixture(scope="module")
def trained(recipe: Path) -> RunRecord:
    return train_run(recipe)


@pytest.fixture
def record(trained: RunRecord, tmp_path: Path) -> RunRecord:
    """A copy of the run for one test."""
    return RunRecord(Path(shutil.copytree(trained.path, tmp_path / "runs" / "tiny")))


def test_a_result_holds_what_each_model_does_on_each_row(recipe: Path, record: RunRecord) -> None:
    loaded = load(recipe, "eval.rows=null").recipe
    told: list[tuple[str, str]] = []

    class Told(Silent):
        def begin(self, subject: str, task: str, rows: int) -> None:
            told.append((subject, task))

    result = evaluate_run(record, loaded, Wanted(progress=Told()))

    assert told == [(model, task) for model in ("base", "adapter") for task in ("copy", "upper", "add")]
    assert (result.run, result.step, result.limit) == ("tiny", 6, None)
    assert {name: (task.domain, task.rows) for name, task in result.tasks.items()} == {
        "copy": ("words", 6), "upper": ("words", 6), "add": ("sums", 6),
    }  # fmt: skip
    [path] = record.eval_dir.glob("*.json")
    assert EvalResult.load(path) == result
    assert record.evaluations() == [result]

    base = resolve_base(loaded.model)
    encoder = Encoder(load_tokenizer(base, loaded.model))
    plain, adapted = load_base(base, loaded.model), load_adapter(load_base(base, loaded.model), record.adapter_dir)
    for task in load_tasks(loaded.mix, encoder, max_length=loaded.train.max_length):
        # Row by row, without batches and without the adapter being switched off.
        nats = {"base": 0.0, "adapter": 0.0}
        for which, model in (("base", plain), ("adapter", adapted)):
            for [example] in in_lots(task.test, 0, limit=None, size=1):
                logits = (
                    model.eval()(torch.tensor([example.input_ids], device=model.device))
                    .logits[0]
                    .detach()
                    .log_softmax(-1)
                )
                targets = example.input_ids[example.prompt_tokens :]
                nats[which] -= float(
                    logits[range(example.prompt_tokens - 1, len(example.input_ids) - 1), targets].sum()
                )
        tokens = task.test.label_tokens
        assert result.tasks[task.name].against.loss == pytest.approx(nats["base"] / tokens, rel=1e-5)
        assert result.tasks[task.name].model.loss == pytest.approx(nats["adapter"] / tokens, rel=1e-5)
    assert all(task.against.loss != task.model.loss for task in result.tasks.values())


def test_predictions_are_kept_row_by_row(recipe: Path, record: RunRecord) -> None:
    loaded = load(recipe).recipe
    result = evaluate_run(record, loaded, Wanted(tasks=["add", "copy"], limit=3))
    [path] = record.eval_dir.glob("*.predictions.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["task"] for line in lines] == ["copy"] * 3 + ["add"] * 3
    assert [line["row"] for line in lines[3:]] == sorted({line["row"] for line in lines[3:]})
    rows = [json.loads(line) for line in (recipe.parent / "add.test.jsonl").read_text().splitlines()]
    for line in lines[3:]:
        row = rows[line["row"]]
        assert (line["prompt"], line["reference"]) == (row["question"], row["answer"])
        own = {f"{model}{what}" for model in ("base", "adapter") for what in ("", "_score", "_nats")}
        assert line.keys() == {"task", "row", "prompt", "reference", "tokens"} | own

    base = resolve_base(loaded.model)
    encoder = Encoder(load_tokenizer(base, loaded.model))
    model = load_adapter(load_base(base, loaded.model), record.adapter_dir)
    task = load_tasks(choose_tasks(loaded.mix, ["add"]), encoder, max_length=1024)[0]
    for line, example in zip(lines[3:], next(in_lots(task.test, 0, limit=3, size=3)), strict=True):
        prompt = example.input_ids[: example.prompt_tokens]
        ids = greedy(model, prompt, stops=encoder.stop_ids, length=task.settings.max_new_tokens)
        assert line["adapter"] == decoded(encoder.tokenizer, ids)
    assert result.tasks["add"].model.score == sum(line["adapter_score"] for line in lines[3:]) / 3


def test_answers_that_are_known_are_not_asked_for_again(recipe: Path, record: RunRecord, tmp_path: Path) -> None:
    loaded = load(recipe).recipe
    whole = evaluate_run(record, loaded, Wanted(limit=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("malora_cli.evals.subject.load_base", lambda *_: pytest.fail("the model was loaded"))
        again = evaluate_run(record, loaded, Wanted(limit=2))
        assert evaluate_run(record, loaded, Wanted(limit=3, rescore=True)).tasks == whole.tasks
        # Of another run on this base, only its own answers are missing.
        other = RunRecord(Path(shutil.copytree(record.path, tmp_path / "other")))
        shutil.rmtree(other.eval_dir)
        with pytest.raises(RunError, match=r"3 answers of adapter on task 'copy' are not stored.*without --rescore"):
            evaluate_run(other, loaded, Wanted(limit=3, rescore=True))
    assert {task.rows for task in again.tasks.values()} == {2}
    # Two evaluations within one second are two files, and the newest comes last.
    assert [result.limit for result in record.evaluations()] == [3, 2, 3]


def test_limit_and_tasks_choose(recipe: Path, record: RunRecord) -> None:
    loaded = load(recipe).recipe
    assert loaded.eval.rows == 4
    result = evaluate_run(record, loaded, Wanted(tasks=["upper"], limit=2))
    assert {name: task.rows for name, task in result.tasks.items()} == {"upper": 2}
    assert result.limit == 2
    assert result.expert_load is not None
    assert result.expert_load.keys() == {"upper"}
    for shares in result.expert_load["upper"].values():
        assert math.isclose(sum(shares), 1, rel_tol=1e-5)
    assert result.gate_entropy is not None
    assert all(0 < value <= 1 for value in result.gate_entropy["upper"].values())
    assert evaluate_run(record, loaded, Wanted(tasks=["upper"], limit=100)).tasks["upper"].rows == 6


def test_the_mix_keeps_its_order_whatever_the_order_of_the_names(recipe: Path) -> None:
    mix = load(recipe).recipe.mix
    assert list(choose_tasks(mix, ["add", "copy"]).tasks) == ["copy", "add"]
    assert choose_tasks(mix, None) is mix


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["add", "uper"], "--tasks: unknown task 'uper'; did you mean 'upper'?"),
        (["zzz"], "--tasks: unknown task 'zzz'; known: add, copy, upper"),
        ([], "--tasks: no task is named. Its tasks: copy, upper, add."),
    ],
)
def test_a_task_that_is_not_there(recipe: Path, record: RunRecord, names: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        evaluate_run(record, load(recipe).recipe, Wanted(tasks=names))
    assert str(caught.value) == message


def test_a_run_that_is_not_finished_is_refused(recipe: Path, record: RunRecord) -> None:
    rewrite(record.path / "manifest.json", lambda manifest: manifest.update(status="running"))
    with pytest.raises(RunError, match=r"not finished.*malora train .*recipe\.yaml --resume"):
        evaluate_run(record, load(recipe).recipe)
    assert not record.eval_dir.exists()


def test_a_checkpoint_is_evaluated_in_place_of_the_end(recipe: Path, record: RunRecord) -> None:
    """Of a run that is still going, too; its loss is that of the evaluation at its step."""
    rewrite(record.path / "manifest.json", lambda manifest: manifest.update(status="running"))
    seen = Wanted(split="validation")
    result = evaluate_run(record, load(recipe).recipe, seen, step=4)
    assert result.step == 4
    assert not record.checkpoint(5).exists()
    newest = record.metrics.evals()[-1]
    assert result.tasks["add"].model.loss != pytest.approx(newest.tasks["add"].loss, rel=1e-5)
    at_end = evaluate_run(record, load(recipe).recipe, seen, step=6)
    assert at_end.tasks["add"].model.loss == pytest.approx(newest.tasks["add"].loss, rel=1e-5)
    evaluate_run(record, load(recipe).recipe, step=6)
    assert [found.step for found in record.evaluations()] == [4, 6, 6]
    assert [found.step for found in record.evaluations_of_the_end()] == [6], "what comparisons go by"
    with pytest.raises(RunError, match=r"checkpoint of step 5 not found. There are checkpoints of steps 4, 6."):
        evaluate_run(record, load(recipe).recipe, step=5)
    shutil.rmtree(record.checkpoints_dir)
    with pytest.raises(RunError, match=r"checkpoint of step 4 not found. There are none."):
        evaluate_run(record, load(recipe).recipe, step=4)


def test_rows_that_changed_since_the_training_are_refused(record: RunRecord, tiny_model: Path, tmp_path: Path) -> None:
    recipe = workplace(tmp_path / "changed", tiny_model)
    path = recipe.parent / "add.test.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"10"', '"11"'), encoding="utf-8")
    with pytest.raises(DataError, match=r"task 'add': .*add.test.jsonl: these rows have changed .*Put them back"):
        evaluate_run(record, load(recipe).recipe)
    assert not record.eval_dir.exists()
    assert evaluate_run(record, load(recipe).recipe, Wanted(tasks=["copy"])).tasks.keys() == {"copy"}


def test_losses_of_training_and_evaluation_agree(recipe: Path, record: RunRecord) -> None:
    last = record.metrics.evals()[-1]
    result = evaluate_run(record, load(recipe).recipe, Wanted(split="validation"))  # both on the same 4 rows at most
    for name, task in result.tasks.items():
        assert last.tasks[name].loss == pytest.approx(task.model.loss, rel=1e-5)


# ---------------------------------------------------------------- a gain is seen


def test_a_model_that_learned_beats_the_base(tmp_path: Path, learner: Callable[[Path], Path]) -> None:
    """ "say x y" is answered with x; the held-out pairs were never seen."""
    pairs = [(x, y) for y in "klmnopqrstuvwxyz" for x in "abcd"]
    held_back = {pair for index, pair in enumerate(pairs) if index % 5 == 0}
    for split, chosen in (("train", set(pairs) - held_back), ("test", held_back)):
        rows = [{"prompt": f"say {x} {y}", "completion": x} for x, y in sorted(chosen)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "say.yaml"
    recipe.write_text(
        f"""\
model: {{base: {learner(tmp_path / "base")}}}
method: {{name: malora, lora_dropout: 0}}
mix:
  system: ""
  tasks:
    say: {{domain: words, train: train.jsonl, test: test.jsonl, format: prompt-completion, metric: exact-match}}
train: {{steps: 120, batch_size: 8, learning_rate: 2e-3, weight_decay: 0, log_every: 20, eval_every: 60}}
output: {{folder: {tmp_path / "runs"}}}
""",
        encoding="utf-8",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing overlaps, nothing is too long
        result = evaluate_run(train_run(recipe), load(recipe, "mix.tasks.say.max_new_tokens=8").recipe)
    base, adapted = result.overall().against, result.overall().model
    assert base is not None
    assert result.tasks["say"].rows == 13
    assert base.score < 0.2
    assert adapted.score > 0.9
    assert adapted.loss < 0.5 < base.loss


@pytest.fixture
def learner(tiny_model: Path) -> Callable[[Path], Path]:
    """Writes the tiny model with a head whose logits can be far apart: with its own, no adapter could be sure."""

    def write(folder: Path) -> Path:
        shutil.copytree(tiny_model, folder)
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        with torch.no_grad():
            model.lm_head.weight.mul_(20)
        model.save_pretrained(folder)
        return folder

    return write


def test_held_out_losses_are_means_over_tokens(recipe: Path, trained: RunRecord) -> None:
    loaded = load(recipe).recipe
    base = resolve_base(loaded.model)
    encoder = Encoder(load_tokenizer(base, loaded.model))
    model = load_adapter(load_base(base, loaded.model), trained.adapter_dir)
    task = load_tasks(choose_tasks(loaded.mix, ["add"]), encoder, max_length=1024)[0]
    at_once = held_out(model, map(collate, in_lots(task.test, 0, limit=None, size=6))).loss
    one_by_one = held_out(model, map(collate, in_lots(task.test, 0, limit=None, size=1))).loss
    assert at_once.nats == pytest.approx(one_by_one.nats, rel=1e-6)
    assert (at_once.tokens, at_once.examples) == (one_by_one.tokens, one_by_one.examples)
