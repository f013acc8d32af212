"""``malora chat``: what is answered, how a conversation goes on, and how it ends."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from chat_families import source_of, tokenizer_of
from malora_cli.adapters import tuner  # noqa: F401 - tells PEFT about our methods
from malora_cli.characters import visible
from malora_cli.chat import speaker as room
from malora_cli.chat.speaker import Decoding, Reply, Speaker
from malora_cli.cli import _conversation, main
from malora_cli.data.encoding import Encoder
from malora_cli.results.predictions import read_predictions
from malora_cli.train import stopping
from train_runs import rewrite, train_run, workplace

SYSTEM = "Answer in one word."


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with weights so large that what it answers, in letters, depends on what it is asked."""
    folder = tmp_path_factory.mktemp("talkative")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    said = [number for token, number in tokenizer.get_vocab().items() if len(token) == 1 and token in ascii_letters]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 8
        others = sorted({*range(len(tokenizer))} - {*said, tokenizer.eos_token_id})
        model.lm_head.weight[others] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, talkative: Path) -> Path:
    """A folder with a run of MALoRA, one of LoRA, and one that is not finished."""
    folder = tmp_path_factory.mktemp("chat")
    recipe = workplace(folder, talkative)
    plain = train_run(recipe, "method={name: lora, r: 4}", "output.name=plain", "train.steps=1")
    unfinished = shutil.copytree(plain.path, plain.path.with_name("unfinished"))
    rewrite(unfinished / "manifest.json", lambda manifest: manifest.update(status="running"))
    train_run(recipe, f"mix.tasks.copy.system={SYSTEM}", "train.learning_rate=0.003")
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="module")
def tokenizer(talkative: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(talkative)


@pytest.fixture(scope="module")
def base(talkative: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(talkative)


@pytest.fixture(scope="module")
def tuned(home: Path, talkative: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(talkative)
    return PeftModel.from_pretrained(model, home / "runs" / "tiny" / "adapter")


class Terminal(io.StringIO):
    """Lines that are typed."""

    def isatty(self) -> bool:
        return True


def chat(arguments: Sequence[str], stdin: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit) as caught:
        main(["chat", *arguments])
    return int(caught.value.code or 0)


def generated(model: Any, tokenizer: PreTrainedTokenizerBase, longest: int, *messages: tuple[str, str]) -> str:
    """What transformers generates greedily behind a conversation of user, assistant, user ..."""
    turns = [{"role": role, "content": text} for role, text in messages]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=longest)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


# ---------------------------------------------------------------- what is answered


def test_a_pipe_gets_the_answer_and_nothing_else(
    here: Path,
    tuned: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert chat(["tiny", "--max-new-tokens", "12"], io.StringIO("two lines\nof a question\n"), monkeypatch) == 0
    answer = generated(tuned, tokenizer, 12, ("user", "two lines\nof a question"))
    assert capsys.readouterr() == (f"{visible(answer)}\n", "cut off at 12 tokens; --max-new-tokens allows more\n")


def test_a_task_is_asked_as_it_is_evaluated(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "tiny", "--tasks", "copy", "eval.rows=null"])
    *_, file = sorted((here / "runs" / "tiny" / "eval").glob("*.json"))
    rows = list(read_predictions(file))
    assert len({row["adapter"] for row in rows} | {row["base"] for row in rows}) > 2, "the rows matter"
    capsys.readouterr()
    typed = "".join(f"{row['prompt']}\n/new\n" for row in rows)
    assert chat(["tiny", "--task", "copy", "--against", "base"], Terminal(typed), monkeypatch) == 0
    answers = [f"{model}: {visible(row[model])}\n" for row in rows for model in ("adapter", "base")]
    assert capsys.readouterr().out == "".join(answers)


def test_a_conversation_goes_on_through_the_chat_template(
    here: Path,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    talkative: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(talkative), "--mix", "mix.yaml", "--task", "copy", "--max-new-tokens", "9"]
    assert chat(arguments, Terminal("one\n\ntwo\n/help\n/new\ntwo\n/exit\nthree\n"), monkeypatch) == 0
    first = generated(base, tokenizer, 9, ("user", "one"))
    second = generated(base, tokenizer, 9, ("user", "one"), ("assistant", first), ("user", "two"))
    alone = generated(base, tokenizer, 9, ("user", "two"))
    assert alone != second, "what was said before matters"
    out, err = capsys.readouterr()
    assert out == "".join(f"{visible(text)}\n" for text in (first, second, alone))
    title, *notes = [line.replace("> ", "") for line in err.splitlines()]
    assert title.startswith(f"{talkative}, as for task copy. /new starts a new conversation, ")
    assert [note for note in notes if note and "cut off" not in note] == [
        "/help is not a command: /new starts a new conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer",
        "new conversation",
    ]


def test_the_system_prompt_is_that_of_the_task(
    here: Path,
    tuned: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_it = generated(tuned, tokenizer, 6, ("system", SYSTEM), ("user", "copy it"))
    without = generated(tuned, tokenizer, 6, ("user", "copy it"))
    assert with_it != without
    for task, answer in (("copy", with_it), ("upper", without)):
        assert chat(["tiny", "--task", task], io.StringIO("copy it"), monkeypatch) == 0
        assert capsys.readouterr().out == f"{visible(answer)}\n"


def test_checkpoints_and_exports_answer_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {}
    for name in (["tiny"], ["tiny", "--step", "6"], ["runs/tiny/adapter"], ["tiny", "--step", "4"]):
        assert chat([*name, "--max-new-tokens", "12"], io.StringIO("copy bel"), monkeypatch) == 0
        answers[" ".join(name)] = capsys.readouterr().out
    whole = answers.pop("tiny --step 4")
    assert len({*answers.values()}) == 1
    assert whole not in answers.values()


def test_a_run_needs_none_of_its_data_to_talk(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workplace(tmp_path, tiny_model)
    monkeypatch.setenv("TINY_DATA", str(tmp_path))
    record = train_run(recipe, "mix.tasks.add.train.path=$TINY_DATA/add.train.jsonl", "train.steps=1")
    monkeypatch.delenv("TINY_DATA")
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    assert chat([str(record.path), "--max-new-tokens", "1"], io.StringIO("1+1="), monkeypatch) == 0
    assert len(capsys.readouterr().out.rstrip("\n")) <= 1


def test_sampling_goes_by_the_seed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sampled(seed: str) -> str:
        arguments = ["tiny", "--temperature", "3", "--seed", seed, "--max-new-tokens", "12"]
        assert chat(arguments, Terminal("copy bel\n/new\ncopy bel\n"), monkeypatch) == 0
        return capsys.readouterr().out

    first = sampled("1")
    assert first == sampled("1")
    assert first != sampled("2")
    one, other = first.rstrip("\n").split("\n")[:1], first.rstrip("\n").split("\n")[-1:]
    assert one != other, "each answer is drawn anew"


# ---------------------------------------------------------------- pieces


class Heard:
    """Takes down what it is told."""

    def __init__(self) -> None:
        self.thought, self.said = list[str](), list[str]()

    def thinks(self, text: str) -> None:
        self.thought.append(text)

    def says(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("family", ["cohere", "deepseek_r1_distill", "gemma4", "gptoss", "llama3", "phi3", "qwen3"])
def test_pieces_of_an_answer_add_up_to_it(family: str) -> None:
    """Whatever the template and wherever tokens part: characters of several tokens, marks, reasoning."""
    encoder = Encoder(tokenizer_of(source_of(family)))
    code = "a < b <| c\n\n```\n    indented\n```\n"
    for text in ("it is five", "é: 漢字 \N{GRINNING FACE}.", code, " <th", "x <|im", "y <|im_end|> z"):
        prompt = encoder.prompt([room.Turn("user", "what is it?")])
        ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        heard = Heard()
        told = room._Told(heard)
        for end in range(1, len(ids) + 1):
            thought, said = encoder.so_far(prompt, ids[:end])
            told.think(thought)
            told.say(said)
        answer = encoder.answer(prompt, ids)
        told.say(answer)
        assert "".join(heard.said) == answer
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in heard.said)


def test_reasoning_is_told_apart_from_the_answer(encoder: Encoder) -> None:
    heard = Heard()
    told = room._Told(heard)
    ids = encoder.tokenizer("<think>\nlet me see\n</think>\n\nfive", add_special_tokens=False)["input_ids"]
    for end in range(1, len(ids) + 1):
        thought, said = encoder.so_far([], ids[:end])
        told.think(thought)
        told.say(said)
    assert ("".join(heard.thought), "".join(heard.said)) == ("let me see", "five")
    assert len(heard.thought) > 3
    assert len(heard.said) == 4


# ---------------------------------------------------------------- experts


def test_experts_are_those_of_the_tokens_of_the_answer(
    here: Path,
    tuned: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replies: list[Reply] = []
    ask = Speaker.ask
    monkeypatch.setattr(Speaker, "ask", lambda *given, **named: replies.append(ask(*given, **named)) or replies[-1])
    assert chat(["tiny", "--experts", "--max-new-tokens", "9"], io.StringIO("copy bel"), monkeypatch) == 0
    [reply] = replies
    assert reply.experts is not None
    assert reply.experts.load.keys() == reply.experts.entropy.keys() == {"layer 0", "layer 1"}
    for load in reply.experts.load.values():
        assert sum(load) == pytest.approx(1)
        assert load == sorted(load, reverse=True)
    # Against the routers' own outputs, of a forward pass over prompt and answer.
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "copy bel"}], add_generation_prompt=True)[
        "input_ids"
    ]
    made = tuned.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=9)
    read = made[:, :-1]  # the last token is not read
    assert reply.generated.stop == "end"
    assert reply.generated.tokens == read.shape[1] - len(ids)
    shares = []
    with torch.no_grad():
        for name, module in tuned.named_modules():
            if "layers.0." in name and hasattr(module, "malora_router"):
                weight, seen = module.malora_router["default"], []
                hook = module.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
                tuned(input_ids=read)
                hook.remove()
                chosen = torch.nn.functional.linear(seen[0][0, len(ids) :], weight).topk(2).indices
                shares.append(chosen.flatten().bincount(minlength=4).sort(descending=True).values / chosen.numel())
    assert reply.experts.load["layer 0"] == pytest.approx(torch.stack(shares).mean(0).tolist(), abs=1e-6)
    table = capsys.readouterr().err
    cells = [f"{100 * share:.1f}" for share in reply.experts.load["layer 1"]]
    assert re.search(rf"layer 1 +{100 * reply.experts.entropy['layer 1']:.1f} +{' +'.join(cells)}\n", table)


# ---------------------------------------------------------------- endings


def interrupted(monkeypatch: pytest.MonkeyPatch, at: Sequence[int]) -> list[str]:
    """Ctrl-C behind some of the pieces that are printed, which are given back."""
    pieces: list[str] = []
    write = _conversation.write

    def wrote(text: str) -> bool:
        pieces.append(text)
        if len(pieces) in at:
            signal.raise_signal(signal.SIGINT)
        return write(text)

    monkeypatch.setattr(_conversation, "write", wrote)
    return pieces


def test_ctrl_c_ends_an_answer_and_not_the_program(
    here: Path,
    tuned: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pieces = interrupted(monkeypatch, [1])
    arguments = ["tiny", "--max-new-tokens", "40", "--against", "base"]
    assert chat(arguments, Terminal("copy bel\ncopy dur\n"), monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out.count("base: ") == 1, "of the second question alone"
    assert "adapter: stopped" in err
    begun = out.splitlines()[0].removeprefix("adapter: ")
    assert pieces[0].removeprefix("adapter: ") == begun[:1], "the token that was under way is finished"
    whole = generated(tuned, tokenizer, 40, ("user", "copy bel"))
    assert whole.startswith(begun)
    assert len(begun) < len(whole)
    then = generated(tuned, tokenizer, 40, ("user", "copy bel"), ("assistant", begun), ("user", "copy dur"))
    assert out.startswith(f"adapter: {visible(begun)}\nadapter: {visible(then)}\n"), "what was said is remembered"


def test_a_second_ctrl_c_ends_the_program(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopping, "_ECHO_SECONDS", 0)
    monkeypatch.setattr(room._Ended, "__call__", lambda *_, **__: torch.tensor([False]))
    interrupted(monkeypatch, [1, 2])
    assert chat(["tiny"], Terminal("copy bel\n"), monkeypatch) == 130
    interrupted(monkeypatch, [1])
    assert chat(["tiny"], io.StringIO("copy bel\n"), monkeypatch) == 130, "in a pipe the first does"
    assert "Traceback" not in capsys.readouterr().err


def wait_for(terminal: int, text: str, seconds: float = 120) -> str:
    """What comes from a terminal until it ends with a text."""
    seen, until = "", time.monotonic() + seconds
    while not seen.endswith(text):
        assert time.monotonic() < until, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def exit_of_ctrl_c(process: subprocess.Popen[bytes]) -> int:
    """The exit code after Ctrl-C; pressed again, since CPython misses one between readline's prompt and its wait."""
    for _ in range(12):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(5)
    return process.wait(0)


def test_a_conversation_on_a_terminal(here: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "malora_cli", "chat", "tiny", "--max-new-tokens", "3"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        title = wait_for(ours, "> ")
        assert "loading libraries" in title
        assert re.search(r"runs/tiny at step 6, on \S+\. /new .*Ctrl-D leaves, Ctrl-C stops an answer", title)
        os.write(ours, b"copy bel\n")
        assert "cut off at 3 tokens" in wait_for(ours, "> ")
        assert exit_of_ctrl_c(process) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# ---------------------------------------------------------------- bad input

REFUSED = {
    "unknown": (["tinny"], r"tinny: not found as a run in runs, nor as a model \(.+\); did you mean 'tiny'\?$"),
    "a folder": (["."], r"no model found in this folder \(config\.json is missing\)"),
    "unfinished": (["unfinished"], r"unfinished: this run is not finished.*--resume"),
    "step": (["tiny", "--step", "5"], r"checkpoint of step 5 not found\. There are checkpoints of steps"),
    "step of a model": (
        ["runs/tiny/adapter", "--step", "2"],
        r"not a run, so it has no checkpoints\. Leave",
    ),
    "task": (["tiny", "--task", "coppy"], r"--task: unknown task 'coppy'; did you mean 'copy'\?$"),
    "task of a model": (["runs/tiny/adapter", "--task", "copy"], r"--task: a model has no tasks .*Add --mix"),
    "mix": (["tiny", "--mix", "mxi.yaml"], r"mxi\.yaml"),
    "experts of a LoRA": (["plain", "--experts"], r"--experts: this model has no experts"),
    "against": (["tiny", "--against", "plain"], r"--against: got 'plain', expected 'base'"),
    "temperature": (["tiny", "--temperature", "inf"], r"--temperature: got inf, not a finite number"),
    "setting": (["tiny", "train.steps=7"], r"train\.steps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(
    case: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = REFUSED[case]
    assert chat(arguments, io.StringIO("hello"), monkeypatch) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert out == ""


def test_a_base_model_has_neither_experts_nor_another_base(
    here: Path, talkative: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--experts"], ["--against", "base"]):
        assert chat([str(talkative), *option], io.StringIO("hello"), monkeypatch) == 2
        assert capsys.readouterr().err.startswith(f"error: {option[0]}: this ")


def test_a_model_with_code_of_its_own_is_not_run_unasked(
    here: Path, talkative: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(talkative, tmp_path / "coded")
    code = {"AutoConfig": "coded.Config", "AutoModelForCausalLM": "coded.Model"}
    rewrite(folder / "config.json", lambda config: config.update(model_type="coded", auto_map=code))
    (folder / "coded.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    assert chat([str(folder)], io.StringIO("hello"), monkeypatch) == 2
    line = r"error: model '\S+coded': it comes with Python code of its own, .* add --trust-remote-code\.\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_a_question_may_be_too_long_or_none(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long, message = "a" * 600, r"error: conversation: it has \d+ tokens, and the context of this model is 512\. Ask"
    assert chat(["tiny"], io.StringIO(long), monkeypatch) == 2
    assert re.fullmatch(rf"{message}[^\n]+\n", capsys.readouterr().err)
    assert chat(["tiny", "--max-new-tokens", "2"], Terminal(f"{long}\nshort\n"), monkeypatch) == 0
    out, err = capsys.readouterr()
    assert re.search(message, err)
    assert len(out) <= 3, "the next question is answered"
    for nothing in ("", " \n"):
        assert chat(["tiny"], io.StringIO(nothing), monkeypatch) == 2
        assert capsys.readouterr().err.startswith("error: standard input: it has no question. Pipe one in")
    assert chat(["tiny"], io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8"), monkeypatch) == 2
    assert capsys.readouterr().err == "error: standard input: not valid UTF-8\n"


def test_an_answer_ends_with_the_context(encoder: Encoder, base: PreTrainedModel) -> None:
    speaker = Speaker("model", base, encoder)
    question = "a" * (512 - len(encoder.prompt([room.Turn("user", "")])) - 3)
    reply = speaker.ask(question, Decoding(40), Heard())
    assert (reply.generated.tokens, reply.generated.stop) == (4, "room")


def test_memory_that_does_not_suffice_ends_an_answer_alone(
    encoder: Encoder, base: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = Speaker("model", base, encoder)
    with monkeypatch.context() as patch:
        patch.setattr(base, "generate", lambda **_: (_ for _ in ()).throw(MemoryError()), raising=False)
        with pytest.raises(room.RunError, match=r"^conversation: out of memory while answering\. Ask something"):
            speaker.ask("hello", Decoding(4), Heard())
    assert speaker.turns == []
    assert speaker.ask("hello", Decoding(4), Heard()).generated.tokens == 4
