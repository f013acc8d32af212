"""What training costs, by scenario. Figures are printed and kept as JSON in ``benchmarks/results/``.

    python benchmarks/train.py trl      examples and supervised tokens a second, and memory, against TRL's SFTTrainer
    python benchmarks/train.py kill     a run that is killed at random moments, again and again, until it ends
    python benchmarks/train.py profile  where the time of a step goes
    python benchmarks/train.py losses   what keeping the loss of every task costs, as a share of the steps
    python benchmarks/train.py resume   seconds from the command to the first step of a run resumed at step 100,000

`trl` trains SmolLM2-135M on the rows of a recipe's mixture (`--recipe`; the quickstart's by default) of up to 512
tokens, in the same order, each contender in a process of its own, in turns. PEFT's LoRA has rank 64 on the same
linears; nobody checkpoints gradients, and all are in the format that `model.dtype` comes to (`auto`: float32 on a CPU).
`trl` has 16 rows a step as we do, and `trl-packed` as many packs of up to 1,024 tokens as hold them on average.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

os.environ["HF_HUB_OFFLINE"] = "1"

from malora_cli.cli._common import prepare_libraries, read_recipe
from malora_cli.cli._terminal import plain_table
from malora_cli.processor import processor
from malora_cli.results import RunRecord, checkpoint_name, write_json

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH, WARM = 8, 16, 2
CONTENDERS = ("trl", "trl-packed", "lora", "malora")
GIB = 2**30
console = Console(width=160)


# ---------------------------------------------------------------- against TRL


def settings() -> list[str]:
    """What every contender has in common."""
    sizes = [f"train.batch_size={BATCH}", f"train.micro_batch_size={BATCH}", f"train.steps={STEPS}"]
    sizes += ["train.epochs=null", "train.stop=steps", "train.micro_batch_tokens=512", "train.max_length=512"]
    return [*sizes, "train.learning_rate=2e-4", "train.log_every=1"]


def ours(method: str, recipe: str, folder: Path) -> dict[str, Any]:
    """`malora train`, evaluations aside."""
    from malora_cli.train.run import train
    from malora_cli.train.view import NoView

    method_settings = "{name: lora, r: 64, lora_alpha: 128}" if method == "lora" else f"{{name: {method}}}"
    quiet = ["train.eval_rows=1", "train.eval_every=10000", "train.checkpoint_every=10000", f"output.folder={folder}"]
    loaded = read_recipe(recipe, [*settings(), *quiet, f"method={method_settings}", "output.name=ours"])
    record = train(loaded, NoView())
    events = record.metrics.train()
    timed = events[WARM:]
    return {
        "seconds": [event.seconds_per_step for event in timed],
        "examples": sum(task.examples for event in timed for task in event.tasks.values()),
        "label_tokens": sum(task.tokens for event in timed for task in event.tasks.values()),
        "losses": [
            sum(task.nats for task in event.tasks.values()) / sum(task.tokens for task in event.tasks.values())
            for event in events
        ],
    }


def trl(packed: bool, recipe: str, folder: Path) -> dict[str, Any]:
    """TRL's SFTTrainer with PEFT's LoRA on the same tokens, the same of them supervised, in the same order."""
    from peer import rows_of, sft_trainer
    from transformers import TrainerCallback

    from malora_cli.train.materials import gather

    asked = read_recipe(recipe, settings()).recipe
    materials = gather(asked)
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    rows = rows_of(materials.mixture.__getitems__(list(range(len(materials.mixture)))))
    trainer = sft_trainer(asked, materials, rows, folder, steps=STEPS, packed=packed, callbacks=[Clock()])
    counts: list[tuple[int, int]] = []
    plain = trainer.data_collator

    def counting(features: list[dict[str, Any]]) -> Any:
        batch = plain(features)
        examples = sum(len(feature.get("seq_lengths", [0])) for feature in features)
        counts.append((examples, int((batch["labels"] != -100).sum())))
        return batch

    trainer.data_collator = counting
    trainer.train()
    timed = counts[WARM : len(marks) // 2]
    return {
        "seconds": [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)][WARM:],
        "examples": sum(examples for examples, _ in timed),
        "label_tokens": sum(tokens for _, tokens in timed),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def contender(name: str, recipe: str) -> dict[str, Any]:
    """Train as one of them, in this process."""
    prepare_libraries()
    with tempfile.TemporaryDirectory() as folder:
        found = (
            trl(name == "trl-packed", recipe, Path(folder))
            if name.startswith("trl")
            else ours(name, recipe, Path(folder))
        )
    return {**found, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def against_trl(rounds: int, recipe: str) -> None:
    """All contenders in turns."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name in CONTENDERS:
            command = [sys.executable, __file__, "one", "--contender", name, "--recipe", recipe]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(result.stdout.splitlines()[-1]))
    table = plain_table(
        ("contender",),
        ("examples/s", "label tokens/s", "/ trl", "/ trl-packed", "peak GiB", "/ trl", "/ trl-packed", "last loss"),
    )
    pace = {n: [run["label_tokens"] / sum(run["seconds"]) for run in runs] for n, runs in found.items()}
    memory = {n: median(run["peak_bytes"] for run in runs) / GIB for n, runs in found.items()}
    figures: dict[str, Any] = {"recipe": Path(recipe).stem, "steps": STEPS, "batch": BATCH, "runs": found, "ratios": {}}
    for name, runs in found.items():
        ratios = {peer: median(a / b for a, b in zip(pace[name], pace[peer], strict=True)) for peer in CONTENDERS[:2]}
        figures["ratios"][name] = {
            **ratios,
            **{f"memory/{peer}": memory[name] / memory[peer] for peer in CONTENDERS[:2]},
        }
        table.add_row(
            name,
            f"{median(run['examples'] / sum(run['seconds']) for run in runs):.2f}",
            f"{median(pace[name]):.1f}",
            *(f"{ratios[peer]:.2f}" for peer in CONTENDERS[:2]),
            f"{memory[name]:.2f}",
            *(f"{memory[name] / memory[peer]:.2f}" for peer in CONTENDERS[:2]),
            f"{runs[0]['losses'][-1]:.3f}",
        )
    console.print(table)
    known = json.loads(path.read_text()) if (path := RESULTS / "train-trl.json").is_file() else {}
    write_json(path, known | {processor(): figures})


# ---------------------------------------------------------------- where the time goes

#: What PyTorch's operators are for, by the start of their names; those that pass others on have no time of their own.
OPERATORS = {
    "matrix products": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"),
    "attention": ("aten::_scaled_dot_product",),
    "random numbers of dropout": ("aten::random_", "aten::bernoulli_"),
    "sums, products and functions by entry": (
        "aten::mul",
        "aten::add",
        "aten::silu",
        "aten::pow",
        "aten::neg",
        "aten::sum",
    ),
    "moving and filling memory": ("aten::copy_", "aten::cat", "aten::fill_", "aten::empty"),
    "the loss from the logits": ("aten::_log_softmax", "aten::nll"),
    "the optimiser": ("aten::_fused_adamw",),
}


def profile(_rounds: int, recipe: str) -> None:
    """Shares of the time of operators in a few steps."""
    prepare_libraries()
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from malora_cli.train.trainer import MaloraTrainer

    plain, found = MaloraTrainer.training_step, {}
    for method in ("lora", "malora"):
        recorder = profiler(activities=[ProfilerActivity.CPU])

        def step(self: Any, *arguments: Any, recorder: Any = recorder) -> Any:
            if self.state.global_step == WARM:
                recorder.start()
            return plain(self, *arguments)

        MaloraTrainer.training_step = step  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as folder:
            ours(method, recipe, Path(folder))
        recorder.stop()
        times = {event.key: event.self_cpu_time_total for event in recorder.key_averages()}
        shares = {
            name: sum(time for key, time in times.items() if key.startswith(starts)) / sum(times.values())
            for name, starts in OPERATORS.items()
        }
        found[method] = {**shares, "everything else": 1 - sum(shares.values())}
    table = plain_table(("share of the time",), tuple(found))
    for name in found["lora"]:
        table.add_row(name, *(f"{shares[name]:.1%}" for shares in found.values()))
    console.print(table)
    write_json(RESULTS / "train-profile.json", {"recipe": Path(recipe).stem, "shares": found})


# ---------------------------------------------------------------- the loss of every task


def losses(rounds: int, recipe: str) -> None:
    """Time spent summing up the tasks' losses and reading them back every step, over the time of the steps."""
    prepare_libraries()
    from malora_cli.train.task_losses import TaskLosses

    spent = 0.0

    def timed(plain: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            try:
                return plain(*arguments)
            finally:
                spent += time.perf_counter() - started

        return call

    for name in ("add", "drain"):
        setattr(TaskLosses, name, timed(getattr(TaskLosses, name)))
    shares = []
    for _ in range(rounds):
        spent = 0.0
        with tempfile.TemporaryDirectory() as folder:
            seconds = ours("malora", recipe, Path(folder))["seconds"]
        shares.append(spent / (median(seconds) * STEPS))
    console.print(f"the losses of all tasks took {median(shares):.3%} of the steps (median of {rounds} runs)")
    write_json(RESULTS / "train-losses.json", {"recipe": Path(recipe).stem, "shares": shares})


# ---------------------------------------------------------------- killed and resumed


def malora(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command line, as a user starts it."""
    command = [sys.executable, "-m", "malora_cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)


def kill(rounds: int, recipe: str) -> None:
    """SIGKILL after a random time, resume, until so many kills have hit a living run; then compare every bit."""
    from safetensors.torch import load_file

    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = [
            "train",
            recipe,
            f"output.folder={folder}",
            "train.steps=40",
            "train.eval_every=10",
            "train.eval_rows=2",
        ]
        common += ["train.checkpoint_every=2", "train.log_every=1", "train.batch_size=4", "train.micro_batch_size=4"]
        assert malora(*common, "output.name=whole").wait() == 0
        record, kills, at = RunRecord(folder / "killed"), 0, []
        while kills < rounds:
            if record.finished:
                record.path.rename(folder / f"killed-{kills}")
                same(RunRecord(folder / "whole"), RunRecord(folder / f"killed-{kills}"), load_file)
            process = malora(*common, "output.name=killed", *(["--resume"] if record.exists else []))
            try:
                process.wait(timeout=chance.uniform(5, 30))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                at.append(record.metrics.train()[-1].step if record.exists and record.metrics.train() else 0)
        if not record.finished:
            assert malora(*common, "output.name=killed", "--resume").wait() == 0
        same(RunRecord(folder / "whole"), record, load_file)
    console.print(f"{kills} kills, seen at steps {at}: the same adapter and the same metrics, bit by bit")
    write_json(RESULTS / "train-kill.json", {"kills": kills, "steps": at})


def same(one: RunRecord, two: RunRecord, load_file: Any) -> None:
    """Make sure that two runs ended alike."""
    first, second = (load_file(run.adapter_dir / "adapter_model.safetensors") for run in (one, two))
    assert all(first[key].equal(second[key]) for key in first)
    clock = {"seconds", "tokens_per_second", "seconds_per_step"}
    assert [e.model_dump(exclude=clock) for e in one.metrics] == [e.model_dump(exclude=clock) for e in two.metrics]


def resume(_rounds: int, recipe: str) -> None:
    """Go on at step 100,000 of a million, whose checkpoint is that of an early step under another number."""
    from malora_cli.train import checkpoints

    step = 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = ["train", recipe, f"output.folder={folder}", "output.name=late", "train.steps=1000000"]
        common += ["train.checkpoint_every=1", "train.eval_every=1000000", "train.eval_rows=1", "train.log_every=1"]
        process = malora(*common)
        record = RunRecord(folder / "late")
        while not checkpoints.checkpoints(record.checkpoints_dir):
            time.sleep(0.2)
        process.kill()
        process.wait()
        [early, *_] = checkpoints.checkpoints(record.checkpoints_dir)
        for other in checkpoints.checkpoints(record.checkpoints_dir)[1:]:
            other.rename(folder / other.name)
        renumber(early, step)
        started = time.perf_counter()
        process = malora(*common, "--resume")
        while not any(event.step == step + 1 for event in record.metrics.train()):
            time.sleep(0.05)
            assert process.poll() is None, process.stderr
        seconds = time.perf_counter() - started
        event = record.metrics.train()[-1]
        process.kill()
    assert event.seconds_per_step is not None
    before = seconds - event.seconds_per_step
    console.print(f"step {event.step:,} began {before:.1f} s after the command and took {event.seconds_per_step:.1f} s")
    write_json(RESULTS / "train-resume.json", {"seconds_before": before, "step_seconds": event.seconds_per_step})


def renumber(checkpoint: Path, step: int) -> None:
    """Make a checkpoint that of another step."""
    from malora_cli.train import checkpoints

    state = checkpoint / "trainer_state.json"
    values = json.loads(state.read_text())
    values["global_step"] = step
    state.write_text(json.dumps(values))
    scratch = checkpoint.parent / f".writing-{checkpoint_name(step)}"
    checkpoint.rename(scratch)
    checkpoints.commit(scratch)


def main() -> None:
    """Run one scenario."""
    scenarios = {"trl": against_trl, "profile": profile, "losses": losses, "kill": kill, "resume": resume}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=[*scenarios, "one"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--recipe", default="quickstart", help="recipe whose mixture is trained on")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scenario == "one":
        print(json.dumps(contender(arguments.contender, arguments.recipe)))
        return
    scenarios[arguments.scenario](arguments.rounds or (30 if arguments.scenario == "kill" else 3), arguments.recipe)


if __name__ == "__main__":
    main()
