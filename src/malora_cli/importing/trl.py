"""TRL: the YAML file of ``trl sft --config``, as of TRL 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from malora_cli.importing import _data
from malora_cli.importing import _readers as read
from malora_cli.importing import _trainer as trainer
from malora_cli.importing._base import Found, Key, Ledger, Said, Tool, by_name, keys, known
from malora_cli.importing._data import Mixed, Places, Source, Task
from malora_cli.importing._files import read_keys

_UNSEEN = "on the hub, so its columns were not looked at; it is taken for"
_LOSSES = ("nll", "chunked_nll", "dft")


def _peft(value: Any) -> Any:
    return read.switch(value) or Said(False, differs=read.NOT_LORA)


def _loss(value: Any) -> Said:
    if value not in _LOSSES:
        read.never(value)
    return Said(why="the loss here is the mean over supervised tokens") if value == "dft" else Said()


def _answers_alone(value: Any) -> Any:
    return read.switch(value) or Said(False, differs="answers alone are trained here, never prompts")


def _cut(value: Any) -> str:
    return str(read.one_of({"keep_start": "truncate_right", "keep_end": "truncate_left"})(value))


KEYS = known(
    trainer.KEYS,
    (
        Key("model_name_or_path", "model.base", read=read.text),
        Key("model_revision", "model.revision", read=lambda value: None if value == "main" else read.text(value)),
        *keys("dtype torch_dtype", to="model.dtype", read=read.dtype),
        Key("attn_implementation", "model.attention", read=read.attention),
        Key("trust_remote_code", "model.trust_remote_code", read=lambda value: read.switch(value) or None),
        Key("chat_template_path", "model.chat_template", "template", read.text),
        Key("use_peft", "method.name", "adapter", _peft),
        Key("lora_r", "method.r", "rank", read.count),
        Key("lora_alpha", "method.lora_alpha", "alpha", read.positive),
        Key("lora_dropout", "method.lora_dropout", "dropout", read.ratio),
        Key("lora_target_modules", "method.target_modules", "targets", read.linears),
        Key("lora_target_parameters", why="linears alone are adapted here"),
        Key("lora_modules_to_save", why="nothing but the adapter is trained here"),
        Key("lora_task_type", "supervised fine-tuning", read=read.only("CAUSAL_LM", instead="rewards are TRL's own")),
        Key("use_rslora", "method.name", "rslora", read.switch),
        Key("use_dora", "method.name", "dora", read.switch),
        Key("load_in_4bit", "model.quantise", "bits", lambda value: 4 if read.switch(value) else None),
        Key("load_in_8bit", "model.quantise", "bits", lambda value: 8 if read.switch(value) else None),
        Key("bnb_4bit_quant_type", "model.quantise", differs="nf4 is the format of 4 bits here", idle=("nf4",)),
        Key("use_bnb_nested_quant", "model.quantise", differs="constants are always quantised too", idle=(True,)),
        Key("bnb_4bit_quant_storage", differs=trainer.SPEED),
        Key("model_init_kwargs", why="say it by the settings of model"),
        Key("dataset_name", "tasks.train.path", "dataset", read.text),
        Key("dataset_config", "tasks.train.config", "config", read.text),
        Key("dataset_train_split", "tasks.train.split", "split", read.text),
        Key("dataset_test_split", "tasks.validation.split", "test_split", read.text),
        *keys("dataset_streaming streaming", differs=trainer.FROM_DISK, idle=(False,)),
        Key("datasets", "tasks", "datasets", read.mappings),
        Key("test_split_size", "validation", "validation", read.number, differs=trainer.VALIDATION),
        Key("max_length", "train.max_length", read=read.count),
        Key("truncation_mode", "tasks.too_long", "cut", _cut),
        Key("packing", differs=trainer.PACKED, idle=(False,)),
        *keys("packing_strategy padding_free pad_to_multiple_of eval_packing", differs=trainer.NEVER_PADDED),
        Key("completion_only_loss", "what is supervised", "completions", _answers_alone),
        Key("assistant_only_loss", "what is supervised", "assistants", _answers_alone),
        Key("loss_type", "the loss", read=_loss),
        Key("dataset_text_field", why="plain text is not trained here", idle=("text",)),
        Key("shuffle_dataset", differs="rows are shuffled anew for every pass", idle=(True, False)),
        Key("dataset_kwargs", why="datasets are prepared by the mix"),
        Key("eos_token", differs="a turn ends as the chat template ends it"),
        Key("pad_token", differs="rows are never padded"),
        Key("router_aux_loss_coef", why=trainer.BASE_STAYS),
        *keys("dataset_num_proc activation_offloading", differs=trainer.SPEED),
        Key("ignore_bias_buffers", why=trainer.PROCESSES, idle=(False,)),
        Key("env", why="set environment variables in the shell"),
        *keys(
            "beta reference_free label_smoothing ref_model_mixup_alpha reward_funcs",
            read=read.never,
            why=read.REFUSED,
            idle=(False,),
        ),
    ),
)

ROW_KEYS = by_name(
    Key("path", "tasks.train.path", read=read.text),
    Key("name", "tasks.train.config", read=read.text),
    Key("data_dir", "tasks.train.path", read=read.text),
    Key("data_files", "tasks.train.path"),
    Key("split", "tasks.train.split", read=read.text),
    Key("columns", "tasks.columns", read=read.names),
    Key("fraction", "tasks.weight", read=read.positive, differs="rows are drawn by chance, not the first ones"),
)


def _mix(found: Mapping[str, Found], at: Places, to: Ledger) -> Mixed:
    if "datasets" in found:
        mixed = _mixture(found["datasets"], found, at, to)
        if "dataset" in found:
            to.carried(found["dataset"].key, "nothing: datasets goes first")
    elif "dataset" in found:
        mixed = _one(found, at, to)
    else:
        raise to.wrong("dataset_name", "neither dataset_name nor datasets names any rows")
    cut = found["cut"].value if "cut" in found else "truncate_right"
    for task in mixed.tasks:
        task.settings["too_long"] = cut
    if "validation" in found:
        to.approximated(found["validation"].key, _data.keep_for_validation(mixed, found["validation"].value))
    if "assistants" not in found and any(task.settings["format"] == "messages" for task in mixed.tasks):
        to.approximated("assistant_only_loss (not given)", "answers alone are trained here, never prompts")
    if found.get("adapter", Found("", False)).value and "targets" not in found:
        to.approximated("lora_target_modules (not given)", "method.target_modules: PEFT's choice for most models")
    return mixed


def _one(found: Mapping[str, Found], at: Places, to: Ledger) -> Mixed:
    """The mix of one dataset by its name."""
    given, config = found["dataset"], found["config"].value if "config" in found else None
    split = found["split"].value if "split" in found else "train"
    source = at.source(given.value, given.key, config=config, split=split)
    task = Task(_data.task_names([given.value])[0], _settings(source, None, given.key, found, to), source.rows)
    measured = "eval_strategy" in found and found["eval_strategy"].value != "no"
    if measured:
        test = found["test_split"].value if "test_split" in found else "test"
        task.settings["validation"] = {**source.settings, "split": test}
    elif "test_split" in found:
        to.left_out(found["test_split"].key, "nothing is evaluated where eval_strategy is no")
    return Mixed([task])


def _mixture(given: Found, found: Mapping[str, Found], at: Places, to: Ledger) -> Mixed:
    """The mix of several datasets."""
    said = [to.read(one, ROW_KEYS, f"{given.key}[{number}].") for number, one in enumerate(given.value)]
    labels = _data.labels(given.value)
    mixed = Mixed([_task(label, one, found, at, to, given.key) for label, one in zip(labels, said, strict=True)])
    fractions = [one["fraction"].value for one in said if "fraction" in one]
    if fractions and len(fractions) != len(said):
        raise to.wrong(given.key, "fraction must be set for all datasets or for none")
    if fractions and len(fractions) > 1:
        _data.interleave(mixed, fractions, "first_exhausted")
        if "steps" in found:
            mixed.stop = None
    return mixed


def _task(
    label: str, said: Mapping[str, Found], found: Mapping[str, Found], at: Places, to: Ledger, where: str
) -> Task:
    if "path" not in said:
        raise to.wrong(where, "a dataset has no path")
    one = {name: value.value for name, value in said.items()}
    key = said["path"].key
    path = f"{one['path']}/{one['data_dir']}" if "data_dir" in one else one["path"]
    path = _data.files_given(path, one.get("data_files"), lambda rule: to.wrong(f"{key} and data_files", rule))
    source = at.source(path, key, config=one.get("name"), split=one.get("split", "train"))
    return Task(label, _settings(source, one.get("columns"), key, found, to), source.rows)


def _settings(
    source: Source, columns: list[str] | None, key: str, found: Mapping[str, Found], to: Ledger
) -> dict[str, Any]:
    """The settings of a task, told from the names that TRL looks for."""
    there = columns if columns is not None else source.columns
    if there is None:
        asks = "completions" in found
        there = ["prompt", "completion"] if asks else ["messages"]
        to.approximated(key, f"tasks.train.path: {_UNSEEN} {' and '.join(there)}")
    tools = "tools" if "tools" in there else None
    if {"prompt", "completion"} <= set(there):
        if isinstance(source.first.get("prompt"), list):
            return _data.conversation(source, "prompt", answer="completion", tools=tools)
        if source.columns is not None:
            to.approximated(key, "tasks.train.path: plain questions go through the chat template too")
        return _data.pair(source, "prompt", "completion")
    if turns := next((name for name in ("messages", "conversations") if name in there), None):
        return _data.conversation(source, turns, tools=tools)
    rule = f"its columns ({', '.join(there)}) are neither prompt and completion nor messages"
    raise to.wrong(key, rule, fix="Plain text is not trained here.")


def _load(file: Path) -> dict[str, Any]:
    return read_keys(file, "configuration of TRL")


TOOL = Tool(
    name="TRL",
    reads="the YAML file of trl sft --config",
    load=_load,
    keys=KEYS,
    row_keys=ROW_KEYS,
    defaults=trainer.DEFAULTS
    | {
        "train.learning_rate": 2e-5,
        "adapter": False,
        "rank": 16,
        "alpha": 32,
        "dropout": 0.05,
        "targets": ["q_proj", "v_proj"],
        "train.max_length": 1024,
        "log_every": 10,
    },
    mix=_mix,
)
