"""What evaluations cost, by scenario. Figures are printed and kept as JSON in ``benchmarks/results/``.

    python benchmarks/evals.py choices --rows FILE   questions a second and answers, against lm-eval's HFLM
    python benchmarks/evals.py generation --data FOLDER   answers a second and texts, against lm-eval's HFLM

Everybody asks the same SmolLM2-135M with a fresh MALoRA adapter, in turns; medians and ratios are of rounds that are
interleaved. `choices` takes JSON lines with `question`, `choices` and `answer` (the position of the right one); a round
is a part of them, by texts and by letters, under the adapter and under the base model, and lm-eval has its best batch.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from rich.console import Console

from malora_cli.adapters.methods import METHODS
from malora_cli.cli._common import prepare_libraries
from malora_cli.cli._terminal import plain_table
from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.tasks import load_tasks
from malora_cli.evals.choices import choice_nats
from malora_cli.evals.questions import Question, questions_of
from malora_cli.modeling import load_base, load_tokenizer, resolve_base, wrap
from malora_cli.named import vocabulary
from malora_cli.processor import processor
from malora_cli.recipe import MixSettings, ModelSettings
from malora_cli.results import write_json

RESULTS = Path(__file__).parent / "results"
MODEL = ModelSettings(base="smollm2-135m-instruct", device="cpu")
#: Lm-eval's batches, of which the fastest in the first round counts.
BATCHES = (1, 8, 32)
console = Console(width=160)


def subject() -> tuple[PeftModel, Encoder]:
    """The model that is asked, with an adapter that routes every token, and its encoder."""
    base = resolve_base(MODEL)
    model = wrap(load_base(base, MODEL), METHODS["malora"]()).eval()
    return model, Encoder(load_tokenizer(base, MODEL))


def keep(name: str, figures: Mapping[str, Any]) -> None:
    """Write figures down with what they were measured on."""
    libraries = ("malora", "torch", "transformers", "peft", "lm_eval")
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{library: version(library) for library in libraries},
    }
    write_json(RESULTS / f"evals-{name}.json", {"machine": machine, **figures})


# ---------------------------------------------------------------- choices


def choices(arguments: argparse.Namespace) -> None:
    """Log-likelihoods of the same tokens by us and by lm-eval, round by round."""
    model, encoder = subject()
    figures: dict[str, Any] = {"rounds": arguments.rounds}
    table = plain_table(
        ("choices",), ("rows", "items/s", "lm-eval's", "ratio", "in CPU time", "batch", "same choice", "nats apart")
    )
    for form, metric in (("cloze", "accuracy"), ("multiple-choice", "accuracy")):
        items = questions(arguments.rows, arguments.limit, form, metric, encoder)
        for name, switched in (("adapter", nullcontext()), ("base", model.disable_adapter())):
            with switched:
                found = against_harness(model, encoder, items, arguments.rounds)
            figures[f"{form} {name}"] = found
            table.add_row(
                f"{form}, {name}",
                f"{found['items']}",
                f"{found['per_second']:.2f}",
                f"{found['harness_per_second']:.2f}",
                f"{found['ratio']:.2f}",
                f"{found['cpu_ratio']:.2f}",
                f"{found['batch']}",
                f"{found['same_choice']}",
                f"{found['nats_apart']:.1e}",
            )
            keep("choices", figures)
    console.print(table)


def questions(rows: Path, limit: int, form: str, metric: str, encoder: Encoder) -> list[Question]:
    """The rows as a task's, encoded as training would have them."""
    source = {"path": str(rows.resolve())}
    task = {"domain": "choices", "train": source, "test": source, "format": form, "metric": metric}
    mix = MixSettings.model_validate({"tasks": {"asked": task}}, context={"vocabulary": vocabulary()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that test rows are training rows
        [loaded] = load_tasks(mix, encoder, max_length=1024)
    return questions_of(loaded.test, limit)


def against_harness(model: PeftModel, encoder: Encoder, items: Sequence[Question], rounds: int) -> dict[str, Any]:
    """Both on all items, a part of them in each round."""
    size = -(-len(items) // rounds)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    harnesses = {
        size: HFLM(pretrained=model, backend="causal", tokenizer=copy.deepcopy(encoder.tokenizer), batch_size=size)
        for size in BATCHES
    }
    weighed(model, parts[0][:2])  # warms up
    tried = {size: timed(lambda lm=lm: asked(lm, parts[0])) for size, lm in harnesses.items()}
    batch = min(tried, key=lambda size: tried[size][2])
    own, their = [], []
    for number, part in enumerate(parts):
        turns = [lambda part=part: weighed(model, part), lambda part=part: asked(harnesses[batch], part)]
        both = [timed(turn) for turn in (turns if number % 2 else turns[::-1])]
        ours, theirs = both if number % 2 else both[::-1]
        own.append(ours)
        their.append(theirs)
    nats = [pair for ours, theirs in zip(own, their, strict=True) for pair in zip(ours[0], theirs[0], strict=True)]
    return {
        "items": len(items),
        "batch": batch,
        "batch_seconds": {size: seconds for size, (_, seconds, _) in tried.items()},
        "per_second": median(len(part) / seconds for part, (_, seconds, _) in zip(parts, own, strict=True)),
        "harness_per_second": median(len(part) / seconds for part, (_, seconds, _) in zip(parts, their, strict=True)),
        "ratio": median(theirs[1] / ours[1] for ours, theirs in zip(own, their, strict=True)),
        "cpu_ratio": median(theirs[2] / ours[2] for ours, theirs in zip(own, their, strict=True)),
        "ratios": [theirs[1] / ours[1] for ours, theirs in zip(own, their, strict=True)],
        "cpu_ratios": [theirs[2] / ours[2] for ours, theirs in zip(own, their, strict=True)],
        "same_choice": sum(ours.index(min(ours)) == theirs.index(min(theirs)) for ours, theirs in nats),
        "nats_apart": max(abs(a - b) for ours, theirs in nats for a, b in zip(ours, theirs, strict=True)),
    }


def timed(work: Callable[[], list[list[float]]]) -> tuple[list[list[float]], float, float]:
    """What it comes to, its seconds, and those of all cores together, which other programs take no part of."""
    started, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - started, time.process_time() - cpu


def weighed(model: PeftModel, items: Sequence[Question]) -> list[list[float]]:
    """Nats of every choice, as `malora eval` finds them."""
    prompts, own = [item.prompt_ids for item in items], [item.choices for item in items]
    return [found.nats for lot in choice_nats(model, prompts, own, batch=Packer(32)) for _, found in lot]


def asked(harness: HFLM, items: Sequence[Question]) -> list[list[float]]:
    """Nats of every choice, as lm-eval finds those of the same tokens."""
    pairs = [(item, choice) for item in items for choice in item.choices]
    requests = [((item.prompt, str(choice)), item.prompt_ids, list(choice)) for item, choice in pairs]
    found = iter(harness._loglikelihood_tokens(requests, disable_tqdm=True))
    return [[-next(found)[0] for _ in item.choices] for item in items]


# ---------------------------------------------------------------- generation


def generation(arguments: argparse.Namespace) -> None:
    """Answers by us and by lm-eval, in turns."""
    from evals_generation import measured

    model, encoder = subject()
    for parameter in model.parameters():
        if parameter.requires_grad:  # a fresh adapter changes no answer
            torch.nn.init.normal_(parameter, std=0.002)
    table = plain_table(("generation",), ("rows", "s", "lm-eval's", "ratio", "in CPU time", "other texts", "not ties"))
    figures = {}
    for name, found in measured(model, encoder, arguments.data, limit=arguments.limit, rounds=arguments.rounds):
        figures[name] = found
        seconds = (f"{median(found[key]):.1f}" for key in ("seconds", "harness_seconds"))
        ratios = (f"{found[key]:.2f}" for key in ("ratio", "cpu_ratio"))
        unlike = (str(len(found["other_texts"])), str(found["other_texts_without_a_tie"]))
        table.add_row(name, str(found["rows"]), *seconds, *ratios, *unlike)
        keep("generation", figures)
    console.print(table)


SCENARIOS: dict[str, Callable[[argparse.Namespace], None]] = {"generation": generation, "choices": choices}


def main() -> None:
    """Run one scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="JSON lines to ask about")
    parser.add_argument("--data", type=Path, help="folder of sets to answer")
    parser.add_argument("--limit", type=int, default=300, help="rows of them at most")
    arguments = parser.parse_args()
    prepare_libraries()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    SCENARIOS[arguments.scenario](arguments)


if __name__ == "__main__":
    main()
