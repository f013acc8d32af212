"""Configurations of other tools with their data, and what each tool makes of a row, written out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
#: What is said, as role and text; an answer that is not trained has ``-`` before its role.
Turns = list[tuple[str, str]]
ROWS = 24


@dataclass(frozen=True)
class Case:
    """A configuration, its files, and what is made of them.

    Args:
        tool: The tool.
        file: Name of the configuration.
        text: The configuration, with the base model as MODEL.
        rows: A row of each data file, by the number of the row.
        turns: What is made of a row of each task, and from which file.
        files: Other files.
        settings: Some settings of the recipe, by dotted path.
    """

    tool: str
    file: str
    text: str
    rows: Mapping[str, Callable[[int], Row]]
    turns: Mapping[str, tuple[str, Callable[[Row], Turns]]]
    files: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, model: Path) -> Path:
        """Write it all into a folder; gives back the configuration."""
        for name, made in self.rows.items():
            rows = [made(number) for number in range(ROWS)]
            lines = name.endswith(".jsonl")
            _write(folder / name, "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
        for name, content in self.files.items():
            _write(folder / name, content if isinstance(content, str) else json.dumps(content))
        _write(folder / self.file, self.text.replace("MODEL", str(model)))
        return folder / self.file

    def read(self, folder: Path, name: str) -> list[Row]:
        """The first twenty rows of a file."""
        return [self.rows[name](number) for number in range(20)]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def alpaca(n: int) -> Row:
    return {"instruction": f"Add {n} and 2.", "input": "" if n % 2 else f"{n}, 2", "output": f"{n + 2}", "id": n}


def pair(n: int) -> Row:
    return {"prompt": f"Is {n} big?", "completion": f"{n} is not."}


def questions(n: int) -> Row:
    return {"q": f"Twice {n}?", "a": f"It is {2 * n}.", "rules": f"Rule {n}.", "system": "never read", "past": []}


def lined(row: Row) -> Turns:
    """An instruction and an input, a line each."""
    text = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
    return [("user", text), ("assistant", row["output"])]


def messages(n: int) -> Row:
    asked = [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}"}]
    more = [{"role": "user", "content": "Again."}, {"role": "assistant", "content": f"{n}, {n}"}]
    begin = [{"role": "system", "content": f"Speak {n}."}] if n % 3 == 0 else []
    return {"messages": [*begin, *asked, *more]}


def said(row: Row) -> Turns:
    """Messages as they are."""
    return [(message["role"], message["content"]) for message in row["messages"]]


LF = """model_name_or_path: MODEL
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
template: qwen3_nothink
cutoff_len: 256
preprocessing_num_workers: 16
output_dir: saves/a
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
"""
SHAREGPT_TAGS = {"role_tag": "who", "content_tag": "says", "user_tag": "client", "assistant_tag": "agent"}
ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj")


def with_past(n: int) -> Row:
    past = [[f"Before {n}?", "Yes."], ["And then?", f"{n}."]] if n % 2 else []
    return questions(n) | {"past": past, "more": f"Be quick, {n}."}


def history(row: Row, *, last: bool, asked: str, system: str | None) -> Turns:
    turns: Turns = [("system", system)] if system else []
    for question, answer in row["past"]:
        turns += [("user", question), ("-assistant" if last else "assistant", answer)]
    return [*turns, ("user", asked), ("assistant", row["a"])]


def shared(n: int) -> Row:
    talk = [{"who": "client", "says": f"Where is {n}?"}, {"who": "agent", "says": f"Here is {n}."}]
    return {"talk": [*talk, {"who": "client", "says": "Thanks."}, {"who": "agent", "says": "Bye."}], "sys": f"Shop {n}"}


def shared_turns(row: Row) -> Turns:
    roles = {"client": "user", "agent": "assistant"}
    return [("system", row["sys"]), *((roles[message["who"]], message["says"]) for message in row["talk"])]


LLAMAFACTORY = {
    "alpaca": Case(
        "llamafactory",
        "sft.yaml",
        LF + "dataset: sums\nquantization_bit: 4\nlr_scheduler_type: cosine\nwarmup_ratio: 0.1\nbf16: true\n",
        {"data/sums.json": alpaca},
        {"sums": ("data/sums.json", lined)},
        {"data/dataset_info.json": {"sums": {"file_name": "sums.json"}}},
        {
            "model.quantise": "nf4",
            "model.dtype": "bfloat16",
            "method.name": "lora",
            "method.r": 8,
            "method.lora_alpha": 16,
            "method.lora_dropout": 0,
            "method.target_modules": ALL_LINEARS,
            "train.batch_size": 8,
            "train.micro_batch_size": 1,
            "train.epochs": 3,
            "train.learning_rate": 1e-4,
            "train.schedule": "cosine",
            "train.warmup_ratio": 0.1,
            "train.seed": 42,
            "train.max_length": 256,
            "mix.weighting": "proportional",
        },
    ),
    "sharegpt": Case(
        "llamafactory",
        "sft.yaml",
        LF + "dataset: shop\nmax_steps: 50\nwarmup_steps: 5\nuse_rslora: true\nlora_rank: 16\nval_size: 0.2\n",
        {"shop.jsonl": shared},
        {"shop": ("shop.jsonl", shared_turns)},
        {
            "dataset_info.json": {
                "shop": {
                    "file_name": "shop.jsonl",
                    "formatting": "sharegpt",
                    "num_samples": 22,
                    "columns": {"messages": "talk", "system": "sys"},
                    "tags": SHAREGPT_TAGS,
                }
            }
        },
        {
            "method.name": "rslora",
            "method.r": 16,
            "train.steps": 50,
            "train.warmup_ratio": 0.1,
            "mix.tasks.shop.max_rows": 22,
            "mix.validation.share": 0.2,
        },
    ),
    "history": Case(
        "llamafactory",
        "conf/sft.yaml",
        LF + "dataset: talks\ndataset_dir: sets\nmask_history: true\n",
        {"sets/talks.json": with_past},
        {
            "talks": (
                "sets/talks.json",
                lambda row: history(row, last=True, asked=f"{row['q']}\n{row['more']}", system=row["rules"]),
            )
        },
        {
            "sets/dataset_info.json": {
                "talks": {
                    "file_name": "talks.json",
                    "columns": {"prompt": "q", "query": "more", "response": "a", "history": "past", "system": "rules"},
                }
            }
        },
        {"mix.tasks.talks.supervise": "last"},
    ),
    "interleaved": Case(
        "llamafactory",
        "sft.yaml",
        LF + "dataset: one, two\nmix_strategy: interleave_under\ninterleave_probs: 0.7, 0.3\nnum_train_epochs: 2\n",
        {"data/one.json": messages, "data/two.jsonl": questions},
        {
            "one": ("data/one.json", said),
            "two": ("data/two.jsonl", lambda row: [("user", row["q"]), ("assistant", row["a"])]),
        },
        {
            "data/dataset_info.json": {
                "one": {
                    "file_name": "one.json",
                    "formatting": "sharegpt",
                    "columns": {"messages": "messages"},
                    "tags": {
                        "role_tag": "role",
                        "content_tag": "content",
                        "user_tag": "user",
                        "assistant_tag": "assistant",
                        "system_tag": "system",
                    },
                },
                "two": {"file_name": "two.jsonl", "columns": {"prompt": "q", "response": "a"}},
            }
        },
        {
            "mix.weighting": "explicit",
            "mix.tasks.one.weight": 0.7,
            "mix.tasks.two.repeats": 2,
            "train.stop": "first_exhausted",
        },
    ),
}

AXOLOTL_HEAD = """base_model: MODEL
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
sequence_len: 256
micro_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 0.0002
optimizer: adamw_torch
sample_packing: true
"""


def labelled(n: int, answers: str = "robo") -> Row:
    return {"conversations": [{"from": "human", "value": f"Is {n} odd?"}, {"from": answers, "value": str(bool(n % 2))}]}


def orca(n: int) -> Row:
    return {"system_prompt": f"You know {n}.", "question": f"What is {n}?", "response": f"A number, {n}."}


def paragraphs(row: Row) -> Turns:
    text = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    return [("user", text), ("assistant", row["output"])]


AXOLOTL = {
    "alpaca": Case(
        "axolotl",
        "lora.yml",
        AXOLOTL_HEAD + "datasets:\n  - path: sums.jsonl\n    type: alpaca\n    ds_type: json\nval_set_size: 0.1\n"
        "evals_per_epoch: 2\nsaves_per_epoch: 1\nnum_epochs: 2\nwarmup_steps: 3\nbf16: auto\nlr_scheduler: linear\n",
        {"sums.jsonl": alpaca},
        {"sums": ("sums.jsonl", paragraphs)},
        settings={
            "method.name": "lora",
            "method.r": 16,
            "method.target_modules": ALL_LINEARS,
            "train.batch_size": 8,
            "train.micro_batch_size": 2,
            "train.epochs": 2,
            "train.schedule": "linear",
            "train.warmup_ratio": 0.5,
            "train.eval_every": 2,
            "train.checkpoint_every": 3,
            "mix.validation.share": 0.1,
        },
    ),
    "chat": Case(
        "axolotl",
        "lora.yml",
        AXOLOTL_HEAD
        + """datasets:
  - path: data/talk.json
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    roles: {user: [human], assistant: [gpt, robo]}
    roles_to_train: [assistant]
chat_template: chatml
default_system_message: Be brief.
""",
        {"data/talk.json": labelled},
        {
            "talk": (
                "data/talk.json",
                lambda row: [
                    ("system", "Be brief."),
                    ("user", row["conversations"][0]["value"]),
                    ("assistant", row["conversations"][1]["value"]),
                ],
            )
        },
        settings={"mix.system": "Be brief.", "train.warmup_ratio": 0.03},
    ),
    "own": Case(
        "axolotl",
        "lora.yml",
        AXOLOTL_HEAD
        + """datasets:
  - path: sums.json
    type:
      system_prompt: You add.
      field_instruction: instruction
      field_input: input
      field_output: output
      format: "Task: {instruction} With: {input}"
      no_input_format: "Task: {instruction}"
load_in_8bit: true
""",
        {"sums.json": alpaca},
        {
            "sums": (
                "sums.json",
                lambda row: [
                    ("system", "You add."),
                    ("user", f"Task: {row['instruction']}" + (f" With: {row['input']}" if row["input"] else "")),
                    ("assistant", row["output"]),
                ],
            )
        },
        settings={"model.quantise": "int8"},
    ),
    "weighted": Case(
        "axolotl",
        "lora.yml",
        AXOLOTL_HEAD
        + """datasets:
  - {path: orca.jsonl, type: alpaca_w_system.load_open_orca, weight: 3}
  - {path: more/orca.jsonl, type: "alpaca_chat.load_qa:chat", weight: 1, shards: 2}
""",
        {
            "orca.jsonl": orca,
            "more/orca.jsonl": lambda n: {"question": f"Half of {2 * n}?", "answer": str(n), "system": "never read"},
        },
        {
            "orca": (
                "orca.jsonl",
                lambda row: [
                    ("system", row["system_prompt"]),
                    ("user", row["question"]),
                    ("assistant", row["response"]),
                ],
            ),
            "orca_2": ("more/orca.jsonl", lambda row: [("user", row["question"]), ("assistant", row["answer"])]),
        },
        settings={"mix.weighting": "explicit", "mix.tasks.orca.weight": 3, "mix.tasks.orca_2.max_rows": 12},
    ),
}

PAIRS = "{'text1': 'query', 'text2': 'response'}".replace("'", '"')


def paired(n: int) -> Row:
    talk = [{"human": f"Next to {n}?", "assistant": str(n + 1)}, {"human": "And next?", "assistant": str(n + 2)}]
    return {"system": f"Count from {n}.", "conversation": talk}


def paired_turns(row: Row) -> Turns:
    turns: Turns = [("system", row["system"])]
    for one in row["conversation"]:
        turns += [("user", one["human"]), ("assistant", one["assistant"])]
    return turns


MS_SWIFT = {
    "shell": Case(
        "ms-swift",
        "train.sh",
        "#!/bin/bash\n# swift sft on two GPUs\nNPROC_PER_NODE=2 CUDA_VISIBLE_DEVICES=0,1 \\\nswift sft \\\n"
        "    --model MODEL --train_type lora \\\n    --dataset 'sums.jsonl#20' \\\n"
        "    --per_device_train_batch_size 1 --gradient_accumulation_steps 4 --learning_rate 1e-4 \\\n"
        "    --target_modules all-linear --max_length 256 --system 'You add.' --logging_steps=2  # and so on\n",
        {"sums.jsonl": alpaca},
        {"sums": ("sums.jsonl", lambda row: [("system", "You add."), *lined(row)])},
        settings={
            "method.lora_alpha": 32,
            "method.target_modules": ALL_LINEARS,
            "train.batch_size": 8,
            "train.weight_decay": 0.1,
            "train.log_every": 2,
            "train.learning_rate": 1e-4,
            "mix.tasks.sums.max_rows": 20,
        },
    ),
    "renamed": Case(
        "ms-swift",
        "sft.yaml",
        f"model: MODEL\ntuner_type: lora\ndataset: [talks.jsonl]\nmax_length: 256\ncolumns: '{PAIRS}'\nuse_hf: true\n"
        "truncation_strategy: left\nstrict: true\nquant_bits: 4\nquant_method: bnb\n",
        {
            "talks.jsonl": lambda n: {
                "text1": f"And {n}?",
                "text2": f"Well, {n}.",
                "history": [["Hello.", f"Hi {n}."]],
                "system": f"Room {n}.",
            }
        },
        {
            "talks": (
                "talks.jsonl",
                lambda row: [
                    ("system", row["system"]),
                    ("user", "Hello."),
                    ("assistant", row["history"][0][1]),
                    ("user", row["text1"]),
                    ("assistant", row["text2"]),
                ],
            )
        },
        settings={
            "model.quantise": "nf4",
            "train.batch_size": 16,
            "mix.tasks.talks.too_long": "truncate_left",
            "mix.tasks.talks.bad_rows": "error",
        },
    ),
    "pairs": Case(
        "ms-swift",
        "args.json",
        json.dumps({"model": "MODEL", "train_type": "lora", "dataset": "data/count.json", "max_length": 256}),
        {"data/count.json": paired},
        {"count": ("data/count.json", paired_turns)},
        settings={"train.epochs": 3, "train.learning_rate": 1e-4},
    ),
    "last round": Case(
        "ms-swift",
        "sft.yaml",
        "model: MODEL\ndataset: [a.jsonl, 'b.jsonl#48']\nloss_scale: last_round\nmax_length: 256\nmax_steps: 20\n"
        "interleave_prob: [0.25, 0.75]\nstopping_strategy: all_exhausted\nseed: 1\ndata_seed: 7\n",
        {"a.jsonl": messages, "b.jsonl": lambda n: {"question": f"{n}?", "answer": f"{n}!"}},
        {
            "a": (
                "a.jsonl",
                lambda row: [
                    ("-assistant" if role == "assistant" and place < len(row["messages"]) - 1 else role, text)
                    for place, (role, text) in enumerate(said(row))
                ],
            ),
            "b": ("b.jsonl", lambda row: [("user", row["question"]), ("assistant", row["answer"])]),
        },
        settings={
            "train.steps": 20,
            "train.seed": 7,
            "train.init_seed": 1,
            "mix.weighting": "explicit",
            "mix.tasks.b.repeats": 2,
        },
    ),
}

TRL_HEAD = "model_name_or_path: MODEL\nuse_peft: true\nmax_length: 256\nper_device_train_batch_size: 4\n"

TRL = {
    "messages": Case(
        "trl",
        "sft.yaml",
        TRL_HEAD + "dataset_name: sets\nassistant_only_loss: true\neval_strategy: steps\neval_steps: 5\nlora_r: 32\n"
        "lora_target_modules: [q_proj, v_proj]\nlearning_rate: 2.0e-4\npacking: true\nreport_to: [wandb, trackio]\n",
        {"sets/train.jsonl": messages, "sets/test.jsonl": messages},
        {"sets": ("sets/train.jsonl", said)},
        settings={
            "method.r": 32,
            "method.lora_alpha": 32,
            "method.target_modules": ("q_proj", "v_proj"),
            "train.eval_every": 5,
            "train.report_to": ("wandb", "trackio"),
            "mix.tasks.sets.validation.split": "test",
        },
    ),
    "text": Case(
        "trl",
        "sft.yaml",
        TRL_HEAD + "dataset_name: pairs.jsonl\nwarmup_steps: 0.1\nlr_scheduler_type: cosine_with_restarts\nbf16: yes\n",
        {"pairs.jsonl": lambda n: pair(n) | {"system": "never read"}},
        {"pairs": ("pairs.jsonl", lambda row: [("user", row["prompt"]), ("assistant", row["completion"])])},
        settings={
            "train.warmup_ratio": 0.1,
            "train.schedule": "cosine",
            "model.dtype": "bfloat16",
            "mix.tasks.pairs.too_long": "truncate_right",
        },
    ),
    "conversational": Case(
        "trl",
        "sft.yaml",
        TRL_HEAD + "datasets:\n  - path: json\n    data_files: [talk.jsonl]\n    split: train\nuse_dora: true\n",
        {
            "talk.jsonl": lambda n: {
                "prompt": [{"role": "system", "content": f"Say {n}."}, {"role": "user", "content": "Now."}],
                "completion": [{"role": "assistant", "content": str(n)}],
            }
        },
        {
            "talk": (
                "talk.jsonl",
                lambda row: [(one["role"], one["content"]) for one in (*row["prompt"], *row["completion"])],
            )
        },
        settings={"method.name": "dora", "train.epochs": 3},
    ),
    "mixture": Case(
        "trl",
        "sft.yaml",
        TRL_HEAD
        + "num_train_epochs: 1\ndatasets:\n  - {path: a.jsonl, fraction: 0.6}\n  - {path: b.json, fraction: 0.4, "
        "columns: [conversations]}\n",
        {"a.jsonl": messages, "b.json": lambda n: labelled(n, "gpt") | {"system": "never read"}},
        {
            "a": ("a.jsonl", said),
            "b": (
                "b.json",
                lambda row: [
                    ("user", row["conversations"][0]["value"]),
                    ("assistant", row["conversations"][1]["value"]),
                ],
            ),
        },
        settings={"train.stop": "first_exhausted", "mix.tasks.a.weight": 0.6, "mix.weighting": "explicit"},
    ),
}
CASES = {
    f"{tool}: {name}": case
    for tool, cases in (("llamafactory", LLAMAFACTORY), ("axolotl", AXOLOTL), ("ms-swift", MS_SWIFT), ("trl", TRL))
    for name, case in cases.items()
}
