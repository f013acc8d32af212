"""Answers that are generated, against lm-eval's `generate_until` with the same model, rows and batch size."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel

from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example
from malora_cli.evals.predict import predict

BATCH = 32
#: Sets of a measure, rows of each and the tokens of their longest answers.
MEASURES = {"short answers": (("banking77", 150, 16), ("snips", 150, 32)), "gsm8k": (("gsm8k", 64, 128),)}
#: Texts that end an answer besides: those of lm-eval's own tasks with short answers, such as nq_open and triviaqa.
UNTIL = {"short answers": ["\n", ".", ","], "gsm8k": []}
#: Two logits that lie nearer to each other than this may change places when a batch is computed in another order.
TIE = 1e-4


def measured(
    model: PeftModel, encoder: Encoder, data: Path, *, limit: int, rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures of each measure, with the adapter and without."""
    for which in ("adapter", "base"):
        for name, sets in MEASURES.items():
            asked = [(prompts(encoder, data / part, min(rows, limit)), longest) for part, rows, longest in sets]
            with model.disable_adapter() if which == "base" else nullcontext():
                encoder.stop_texts = UNTIL[name]
                yield f"{name} {which}", against_harness(model, encoder, asked, rounds)


def prompts(encoder: Encoder, folder: Path, rows: int) -> list[list[int]]:
    """Tokens of so many prompts drawn from a set."""
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = map(json.loads, random.Random(0).sample(lines, rows))
    examples = [Example.single(f"{row['instruction']}\n\n{row['input']}", row["output"]) for row in drawn]
    return [list(found.input_ids[: found.prompt_tokens]) for found in map(encoder.encode, examples)]


def against_harness(
    model: PeftModel, encoder: Encoder, asked: Sequence[tuple[list[list[int]], int]], rounds: int
) -> dict[str, Any]:
    """Both in turns; `in CPU time` are the seconds of all cores together, of which other programs have no part."""
    tokenizer = copy.deepcopy(encoder.tokenizer)
    harness = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=BATCH, max_length=2048)
    ways: list[Callable[[], list[str]]] = [
        lambda: [text for ids, longest in asked for text in ours(model, encoder, ids, longest)],
        lambda: [text for ids, longest in asked for text in theirs(harness, encoder, ids, longest)],
    ]
    few = asked[0][0][:2]
    ours(model, encoder, few, 2)  # warms up
    theirs(harness, encoder, few, 2)
    pairs = []
    for number in range(rounds):
        both = [timed(way) for way in (ways if number % 2 else ways[::-1])]
        pairs.append(tuple(both if number % 2 else both[::-1]))
    rows = [ids for part, _ in asked for ids in part]
    unlike = [
        {"row": row, "ours": a, "theirs": b, "nearest_logits": nearest(model, encoder, rows[row], a)}
        for row, (a, b) in enumerate(zip(pairs[0][0][0], pairs[0][1][0], strict=True))
        if a.strip() != b.strip()
    ]
    return {
        "rows": len(rows),
        "batch": BATCH,
        "seconds": [one[1] for one, _ in pairs],
        "harness_seconds": [other[1] for _, other in pairs],
        "ratio": median(other[1] / one[1] for one, other in pairs),
        "cpu_seconds": [one[2] for one, _ in pairs],
        "harness_cpu_seconds": [other[2] for _, other in pairs],
        "cpu_ratio": median(other[2] / one[2] for one, other in pairs),
        "other_texts": unlike,
        "other_texts_without_a_tie": sum(row["nearest_logits"] > TIE for row in unlike),
    }


def timed(work: Callable[[], list[str]]) -> tuple[list[str], float, float]:
    """What it comes to, its seconds, and those of all cores."""
    started, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - started, time.process_time() - cpu


def ours(model: PeftModel, encoder: Encoder, ids: list[list[int]], longest: int) -> list[str]:
    """As `malora eval` answers."""
    texts = predict(model, encoder, ids, max_new_tokens=longest, batch=Packer(BATCH))
    for stop in encoder.stop_texts:
        texts = [text.partition(stop)[0] for text in texts]
    return texts


def theirs(harness: HFLM, encoder: Encoder, ids: list[list[int]], longest: int) -> list[str]:
    """As lm-eval answers; the same tokens are asked, and the same end an answer."""
    texts = [encoder.tokenizer.decode(prompt) for prompt in ids]
    assert [harness.tok_encode(text) for text in texts] == ids
    until = [*(encoder.tokenizer.decode(stop) for stop in encoder.stop_ids), *encoder.stop_texts]
    how = {"until": until, "max_gen_toks": longest, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, how), number) for number, text in enumerate(texts)]
    return harness.generate_until(requests, disable_tqdm=True)


@torch.no_grad()
def nearest(model: PeftModel, encoder: Encoder, prompt: list[int], text: str) -> float:
    """How near the two best logits come to each other on the way to an answer, computed alone and without a cache."""
    answer = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = model(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 :]
    best = logits.topk(2).values
    return float((best[:, 0] - best[:, 1]).min())
