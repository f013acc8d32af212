"""A run's greedy answers in other programs: whether their tokens are the same, and how far their log-probabilities are.

    python benchmarks/servers.py keep RUN FILE [--lora FOLDER]    here: of the run, or of a LoRA of it in PEFT's format
    python benchmarks/servers.py vllm FILE BUNDLE [--dtype bfloat16] [--compiled]     where vLLM is installed
    python benchmarks/servers.py mlx FILE BASE ADAPTER                                where mlx-lm is installed

The prompts are a test question of every task. The last two need no malora, and so can run in an environment of
their own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

NEW = 32
#: The tokens of an answer, and the log-probability of each in nats.
Answer = tuple[list[int], list[float]]


def keep(run: Path, lora: Path | None) -> dict[str, Any]:
    """The prompts and the answers, and whether the base model alone has the same."""
    import torch
    from peft import PeftModel

    from malora_cli.adapters.product import by_pytorch
    from malora_cli.cli._common import recipe_of_run
    from malora_cli.data.encoding import Encoder
    from malora_cli.data.tasks import load_tasks
    from malora_cli.modeling import base_of_run, load_adapter, load_base, load_tokenizer
    from malora_cli.results import RunRecord

    record = RunRecord(run)
    recipe = recipe_of_run(record, [], trust=False)
    found = base_of_run(recipe.model, record.manifest)
    tokenizer, base = load_tokenizer(found, recipe.model), load_base(found, recipe.model)
    if lora is None:
        model = load_adapter(base, record.adapter_at(None), recipe.method)
    else:
        model = PeftModel.from_pretrained(base, lora)
    model.eval()

    @torch.no_grad()
    def answer(prompt: list[int]) -> Answer:
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, **settings)
        new = whole[0, len(prompt) :]
        log = model(input_ids=whole).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        return new.tolist(), log.gather(1, new.unsqueeze(1)).squeeze(1).tolist()

    asked = {}
    with by_pytorch():
        for task in load_tasks(recipe.mix, Encoder(tokenizer), max_length=recipe.train.max_length):
            [row] = task.test.examples(task.test.sample(1), 0)
            prompt = list(row.input_ids)[: row.spans[-1][0]]
            tokens, log = answer(prompt)
            with model.disable_adapter():
                alone, _ = answer(prompt)
            asked[task.name] = {"prompt": prompt, "tokens": tokens, "log": log, "as_base": alone == tokens}
    return {"eos": tokenizer.eos_token_id, "asked": asked}


def in_vllm(prompts: list[list[int]], bundle: Path, dtype: str, *, compiled: bool) -> Iterator[Answer]:
    """Answers of a bundle."""
    from vllm import LLM, SamplingParams

    options = {"trust_remote_code": True, "model_impl": "transformers", "dtype": dtype, "max_model_len": 512}
    model = LLM(str(bundle), enforce_eager=not compiled, max_num_seqs=len(prompts), **options)
    sampling = SamplingParams(temperature=0, max_tokens=NEW, logprobs=1)
    for found in model.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling):
        [answer] = found.outputs
        tokens = list(answer.token_ids)
        yield tokens, [of[token].logprob for of, token in zip(answer.logprobs, tokens, strict=True)]


def in_mlx(prompts: list[list[int]], base: Path, adapter: Path, end: int) -> Iterator[Answer]:
    """Answers of an MLX adapter."""
    import mlx.core
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    mlx.core.set_default_device(mlx.core.cpu)
    model, _ = load(str(base), adapter_path=str(adapter))
    for prompt in prompts:
        tokens, log = list[int](), list[float]()
        for token, log_V in generate_step(mlx.core.array(prompt), model, max_tokens=NEW):
            tokens.append(int(token))
            log.append(float(log_V[token]))
            if token == end:
                break
        yield tokens, log


def main() -> None:
    """Keep answers, or print how others compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["keep", "vllm", "mlx"])
    parser.add_argument("places", type=Path, nargs="+")
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    if given.what == "keep":
        run, file = given.places
        file.write_text(json.dumps(keep(run, given.lora)))
        return
    file, *folders = given.places
    kept = json.loads(file.read_text())
    prompts = [one["prompt"] for one in kept["asked"].values()]
    if given.what == "vllm":
        [bundle] = folders
        answers, used = in_vllm(prompts, bundle, given.dtype, compiled=given.compiled), ("torch", "transformers")
    else:
        base, adapter = folders
        answers, used = in_mlx(prompts, base, adapter, kept["eos"]), ("mlx", "mlx-lm")
    for (task, one), (tokens, log) in zip(kept["asked"].items(), answers, strict=True):
        far = max(abs(a - b) for a, b in zip(log, one["log"], strict=False))
        same = "the same" if tokens == one["tokens"] else "others"
        print(f"{task}: {same}, {len(tokens)} tokens, {far:.1e} nats; the base has the same: {one['as_base']}")
    print(", ".join(f"{name} {version(name)}" for name in used))


if __name__ == "__main__":
    main()
