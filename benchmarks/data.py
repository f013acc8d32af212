"""What the data room costs, by scenario. Figures are printed and kept as JSON in ``benchmarks/results/``.

    python benchmarks/data.py tokenise    encoding against a bare `datasets.map` of the same rows and processes
    python benchmarks/data.py rows        memory of 1 and of 10 million rows on disk, from the file to the order
    python benchmarks/data.py loader      fetching and packing the rows of a step against SmolLM2-135M's step
    python benchmarks/data.py tasks       500 tasks in one mix, first and second time
    python benchmarks/data.py packing     how full micro-batches are (`--recipe` takes your own mixture)

Everything is made on the spot, in a folder that is removed again. Timings are medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from malora_cli.cli._common import prepare_libraries, read_recipe

os.environ["HF_HUB_OFFLINE"] = "1"
prepare_libraries()

import datasets  # noqa: E402
import numpy as np  # noqa: E402
from transformers import PreTrainedTokenizerBase  # noqa: E402

from malora_cli.cli._terminal import plain_table  # noqa: E402
from malora_cli.data.batch import Packer  # noqa: E402
from malora_cli.data.columns import RowReader  # noqa: E402
from malora_cli.data.encode_rows import Encoding, processes_for  # noqa: E402
from malora_cli.data.encoding import Encoder  # noqa: E402
from malora_cli.data.formats import FORMATS  # noqa: E402
from malora_cli.data.mixture import lay_out  # noqa: E402
from malora_cli.data.sources import load_rows  # noqa: E402
from malora_cli.data.statement import state  # noqa: E402
from malora_cli.data.tasks import load_tasks  # noqa: E402
from malora_cli.modeling import load_tokenizer, resolve_base  # noqa: E402
from malora_cli.recipe import MixSettings, ModelSettings, SourceSettings, TrainSettings  # noqa: E402
from malora_cli.results import write_json  # noqa: E402
from malora_cli.train.materials import gather, prepare_model  # noqa: E402
from malora_cli.train.probe import measure_longest_step  # noqa: E402

RESULTS = Path(__file__).parent / "results"
MODEL = ModelSettings(base="smollm2-135m-instruct")
WORDS = ["river", "stone", "seven", "window", "carry", "north", "blue", "of", "the", "a", "and", "to", "in", "paper"]
GIB = 2**30
console = Console(width=160)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder with caches of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"], datasets.config.HF_DATASETS_CACHE = str(folder / "cache"), folder / "hf"
        yield folder


def tokenizer() -> PreTrainedTokenizerBase:
    """That of the embedded model; converted before the cache is elsewhere."""
    return load_tokenizer(resolve_base(MODEL), MODEL)


def write_rows(path: Path, count: int, *, words: tuple[int, int]) -> None:
    """Rows of a question and an answer, each of so many words."""
    chance = random.Random(count)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            texts = [" ".join(chance.choices(WORDS, k=length)) for length in words]
            file.write(json.dumps({"prompt": f"{number} {texts[0]}", "completion": texts[1]}) + "\n")


def mix_of(paths: list[Path], test: Path) -> MixSettings:
    """A task for each file."""
    common = {"domain": "d", "test": {"path": str(test)}, "format": "prompt-completion", "metric": "exact-match"}
    return MixSettings.model_validate(
        {"tasks": {f"task-{n}": {**common, "train": {"path": str(path)}} for n, path in enumerate(paths)}}
    )


# ---------------------------------------------------------------- tokenise


def tokenise(rounds: int, count: int = 60_000) -> None:
    """Encoding, and the least code that yields the same tokens with what is supervised of them."""
    words = tokenizer()
    with scratch() as folder:
        write_rows(folder / "rows.jsonl", count, words=(45, 15))
        rows = load_rows(SourceSettings(path=str(folder / "rows.jsonl")), split="train")
        reader = RowReader("prompt-completion", FORMATS["prompt-completion"], {}, rows.dataset.column_names, "rows")
        processes = processes_for(count)

        def bare(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
            turns = [[{"role": "user", "content": text}] for text in batch["prompt"]]
            prompts = [words.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
            answers = [f"{text}<|im_end|>" for text in batch["completion"]]
            context = words(prompts, add_special_tokens=False)["input_ids"]
            supervised = words(answers, add_special_tokens=False)["input_ids"]
            ids = [one + two for one, two in zip(context, supervised, strict=True)]
            return {"input_ids": ids, "prompt_tokens": [len(one) for one in context]}

        def by_map(turn: int) -> None:
            options = {"batched": True, "remove_columns": rows.dataset.column_names, "num_proc": processes}
            rows.dataset.map(bare, new_fingerprint=f"bare{turn}", **options)

        def ours(turn: int) -> None:  # another limit is another entry
            Encoding(reader, Encoder(words), None, 1000 + turn, "drop", "error").split(rows)

        seconds = in_turns({"datasets.map": by_map, "malora": ours}, rounds)
        ratios = [a / b for a, b in zip(seconds["malora"], seconds["datasets.map"], strict=True)]
    figures = {"rows": count, "processes": processes, "seconds": seconds, "ratio": median(ratios), "ratios": ratios}
    console.print(f"{count:,} rows, {processes} processes: malora / datasets.map {median(ratios):.2f} (median)")
    write_json(RESULTS / "data-tokenise.json", figures)


def in_turns(runs: dict[str, Callable[[int], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run(turn)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


# ---------------------------------------------------------------- rows


class Memory:
    """The most memory that this process and its children have at once, looked at four times a second.

    What several of them share counts once (the kernel's proportional set size). ``resident`` has the pages of mapped
    files in it as well, which the kernel takes back whenever something else wants them.
    """

    def __init__(self) -> None:
        self.peak_private = self.peak_resident = 0
        self.done = threading.Event()

    def __enter__(self) -> Memory:
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.25):
            found = [sizes(pid) for pid in family(os.getpid())]
            self.peak_private = max(self.peak_private, sum(one.get("Pss_Anon", 0) for one in found))
            self.peak_resident = max(self.peak_resident, sum(one.get("Pss", 0) for one in found))


def sizes(pid: int) -> dict[str, int]:
    """Sizes of a process in bytes, by the kernel's names."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in family(int(child)))]


def rows(_rounds: int, counts: tuple[int, ...] = (1_000_000, 10_000_000)) -> None:
    """From the file to the order, in a process of its own for every size."""
    tokenizer()
    figures = {}
    for count in counts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures[f"{count}"] = found = pool.apply(one_size, (count,))
        console.print(
            f"{count:,} rows: private memory {found['before_gib']:.2f} GiB before, {found['private_gib']:.2f} at most; "
            f"with mapped files {found['resident_gib']:.2f}; a step's rows in {found['step_ms']:.1f} ms"
        )
    write_json(RESULTS / "data-rows.json", figures)


def one_size(count: int) -> dict[str, float]:
    """Read, encode, look for overlap, state, and fetch rows all over the order."""
    words = tokenizer()
    with scratch() as folder:
        write_rows(folder / "train.jsonl", count, words=(6, 2))
        write_rows(folder / "test.jsonl", 100, words=(7, 2))
        before = sizes(os.getpid())["Pss_Anon"]
        with Memory() as memory:
            started = time.perf_counter()
            mix = mix_of([folder / "train.jsonl"], folder / "test.jsonl")
            tasks = load_tasks(mix, Encoder(words), max_length=512)
            first = time.perf_counter() - started
            started = time.perf_counter()
            tasks = load_tasks(mix, Encoder(words), max_length=512)
            again = time.perf_counter() - started
            mixture = lay_out(tasks, mix, TrainSettings(epochs=3, batch_size=24))
            state(mixture, Packer(24, 1024))
            starts = np.random.default_rng(0).integers(0, len(mixture) - 24, size=2000)
            started = time.perf_counter()
            for start in starts:
                Packer(24)(mixture.__getitems__(range(start, start + 24)))
            step = (time.perf_counter() - started) / len(starts)
    return {
        "before_gib": before / GIB,
        "private_gib": memory.peak_private / GIB,
        "resident_gib": memory.peak_resident / GIB,
        "first_seconds": first,
        "again_seconds": again,
        "step_ms": step * 1000,
    }


# ---------------------------------------------------------------- loader, tasks, packing


def loader(rounds: int) -> None:
    """A step of the quickstart: its rows fetched and packed, and its training."""
    recipe = read_recipe("quickstart").recipe
    materials = gather(recipe)
    model = prepare_model(recipe, materials)
    mixture, packer, ratios = materials.mixture, materials.packer, []
    statement = state(mixture, packer)
    for turn in range(rounds + 1):
        started = time.perf_counter()
        for step in range(20):
            packer(mixture.__getitems__(range(step * mixture.batch_size, (step + 1) * mixture.batch_size)))
        fetched = (time.perf_counter() - started) / 20
        cost = measure_longest_step(model, mixture, packer, recipe.train)
        if turn:
            ratios.append(fetched / cost.training_seconds(statement.step_tokens))
    console.print(f"fetching and packing / step: {median(ratios):.2%} (median of {rounds})")
    write_json(RESULTS / "data-loader.json", {"ratio": median(ratios), "ratios": ratios})


def tasks(_rounds: int, count: int = 500) -> None:
    """As many tasks as there are files."""
    words = tokenizer()
    with scratch() as folder:
        paths = [folder / f"{number}.jsonl" for number in range(count)]
        for number, path in enumerate(paths):
            write_rows(path, 50 + number % 7, words=(8, 2))
        write_rows(folder / "test.jsonl", 40, words=(9, 2))
        mix = mix_of(paths, folder / "test.jsonl")
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            loaded = load_tasks(mix, Encoder(words), max_length=512)
            mixture = lay_out(loaded, mix, TrainSettings(steps=1000, batch_size=24))
            seconds.append(time.perf_counter() - started)
        drawn = np.bincount(mixture.order.at(np.arange(len(mixture)))[0], minlength=count)
    console.print(
        f"{count} tasks: {seconds[0]:.1f} s at first, {seconds[1]:.1f} s again; each drawn {set(drawn.tolist())}"
    )
    write_json(RESULTS / "data-tasks.json", {"tasks": count, "first_seconds": seconds[0], "again_seconds": seconds[1]})


def packing(_rounds: int, recipe: str = "quickstart") -> None:
    """Room used in micro-batches of some sizes; none of it is padding, whatever the size."""
    table = plain_table(("tokens of a micro-batch",), ("rows a step", "micro-batches", "room used"))
    figures = []
    for tokens in (512, 1024, 2048):
        for batch in (32, 64, 128, 256):
            sizes = [f"train.batch_size={batch}", f"train.micro_batch_size={batch}"]
            sizes += [f"train.micro_batch_tokens={tokens}", "train.max_length=512"]
            materials = gather(read_recipe(recipe, sizes).recipe)
            found = state(materials.mixture, materials.packer)
            table.add_row(str(tokens), str(batch), f"{found.micro_batches:.1f}", f"{found.filled:.1%}")
            figures.append({"tokens": tokens, "rows": batch, "filled": found.filled})
    console.print(table)
    write_json(RESULTS / "data-packing.json", {"recipe": Path(recipe).stem, "figures": figures})


def main() -> None:
    """Run one scenario."""
    scenarios = {"tokenise": tokenise, "rows": rows, "loader": loader, "tasks": tasks, "packing": packing}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=scenarios)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--recipe", help="recipe whose mixture is packed")
    arguments = parser.parse_args()
    options = {"recipe": arguments.recipe} if arguments.recipe else {}
    scenarios[arguments.scenario](arguments.rounds, **options)


if __name__ == "__main__":
    main()
