"""LLaMA-Factory: a YAML file of training arguments, and the dataset_info.json that its datasets stand in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from malora_cli.errors import RecipeError
from malora_cli.importing import _data
from malora_cli.importing import _readers as read
from malora_cli.importing import _trainer as trainer
from malora_cli.importing._base import Found, Key, Ledger, Tool, by_name, keys, known
from malora_cli.importing._data import Mixed, Places, Source, Task
from malora_cli.importing._files import read_json_mapping, read_keys

_INFO, _FOLDER = "dataset_info.json", "data"
_REFUSED = "train on preferences, rewards and plain text with LLaMA-Factory itself"
_PICTURES = "only text is trained here"
_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "system_tag": "system"}
_TAGS = {"role_tag": "from", "content_tag": "value", "function_tag": "function_call"}
_CALLS = ("function_call", "tool_call")
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}


KEYS = known(
    trainer.KEYS,
    (
        Key("model_name_or_path", "model.base", read=read.text),
        Key("model_revision", "model.revision", read=lambda value: None if value == "main" else read.text(value)),
        Key("trust_remote_code", "model.trust_remote_code", read=lambda value: read.switch(value) or None),
        Key("flash_attn", "model.attention", read=read.attention),
        Key("quantization_bit", "model.quantise", "bits", read.bits),
        Key("quantization_method", "bitsandbytes", read=read.one_of({"bnb": None, "bitsandbytes": None})),
        Key("quantization_type", "model.quantise", differs="nf4 is the format of 4 bits here", idle=("nf4",)),
        Key("double_quantization", "model.quantise", differs="constants are quantised too here", idle=(True,)),
        Key("stage", "supervised fine-tuning", read=read.only("sft", instead=_REFUSED)),
        Key("finetuning_type", "method.name", "adapter", read.tuner("lora")),
        Key("lora_rank", "method.r", "rank", read.count),
        Key("lora_alpha", "method.lora_alpha", "alpha", read.positive),
        Key("lora_dropout", "method.lora_dropout", "dropout", read.ratio),
        Key("lora_target", "method.target_modules", "targets", read.linears),
        Key("use_rslora", "method.name", "rslora", read.switch),
        Key("use_dora", "method.name", "dora", read.switch),
        Key("cutoff_len", "train.max_length", read=read.count, differs="longer rows lose their end"),
        Key("template", differs=trainer.TEMPLATE),
        Key("default_system", "system", "system", read.text),
        Key("dataset", "tasks", "datasets", read.names),
        Key("eval_dataset", "tasks.validation", "eval_datasets", read.names),
        Key("dataset_dir", "paths of the tasks", "dataset_dir", read.text),
        Key("mix_strategy", "weighting and train.stop", "mixing", read.text),
        Key("interleave_probs", "tasks.weight", "shares", read.numbers),
        Key(
            "max_samples",
            "tasks.max_rows",
            "max_rows",
            read.count,
            differs="so many of more, chosen at random",
        ),
        Key("val_size", "validation", "validation", read.number, differs=trainer.VALIDATION),
        Key("mask_history", "tasks.supervise", "last", read.switch),
        Key("train_on_prompt", why="prompts are never trained here", idle=(False,)),
        *keys("packing neat_packing", differs=trainer.PACKED, idle=(False,)),
        Key("enable_thinking", differs="rows without reasoning are asked without it"),
        Key("tool_format", differs="tools go through the tokenizer's chat template"),
        Key("streaming", differs=trainer.FROM_DISK, idle=(False,)),
        Key(
            "disable_gradient_checkpointing", "train.gradient_checkpointing", read=lambda value: not read.switch(value)
        ),
        *keys("pissa_init create_new_adapter pissa_convert", why="a LoRA begins as PEFT's does", idle=(False,)),
        Key("loraplus_lr_ratio", why="both matrices have one learning rate here"),
        Key("additional_target", why="nothing but the adapter is trained here"),
        Key("adapter_name_or_path", why=trainer.OTHER_ADAPTER),
        Key("pure_bf16", "model.dtype", "bf16", read.switch, differs="the adapter is float32", idle=(False,)),
        *keys(
            "use_galore use_apollo use_badam use_adam_mini use_muon", why="AdamW is the only optimiser", idle=(False,)
        ),
        *keys("use_llama_pro shift_attn mixture_of_depths", why=trainer.BASE_STAYS, idle=(False,)),
        Key("rope_scaling", why=trainer.BASE_STAYS),
        *keys("resize_vocab add_tokens add_special_tokens", why="the tokenizer stays as it is here", idle=(False,)),
        Key("use_swanlab", why="not a tracker that is known here", idle=(False,)),
        *keys("pref_beta pref_loss ref_model reward_model", read=read.never, why=read.REFUSED, idle=(False,)),
        *keys("media_dir image_max_pixels image_min_pixels video_max_pixels", why=_PICTURES),
        *keys("freeze_vision_tower freeze_multi_modal_projector", why=_PICTURES, idle=(True,)),
        *keys(
            "preprocessing_num_workers preprocessing_batch_size overwrite_cache tokenized_path", differs=trainer.SPEED
        ),
        *keys("cache_dir use_fast_tokenizer low_cpu_mem_usage use_unsloth use_unsloth_gc", differs=trainer.SPEED),
        *keys(
            "enable_liger_kernel use_reentrant_gc upcast_layernorm upcast_lmhead_output buffer_size",
            differs=trainer.SPEED,
        ),
        *keys("quantization_device_map ray_run_name ray_num_workers resources_per_worker", why=trainer.PROCESSES),
        *keys("placement_strategy", why=trainer.PROCESSES),
        *keys("plot_loss print_param_status include_effective_tokens_per_second", differs=trainer.SHOWN),
        *keys("eval_on_each_dataset", differs="every task is always evaluated by itself"),
        *keys("ignore_pad_token_for_loss", differs="rows are never padded", idle=(True,)),
        *keys("max_new_tokens temperature top_p top_k do_sample eval_num_beams", why=trainer.NO_GENERATION),
        Key("compute_accuracy", why=trainer.NO_GENERATION, idle=(False,)),
        *keys("hf_hub_token ms_hub_token om_hub_token", why="hubs take it from their environment variables"),
        *keys("swanlab_project swanlab_run_name swanlab_mode", why=trainer.TRACKER_ENV),
    ),
)

ROW_KEYS = by_name(
    Key("file_name", "tasks.train.path", read=read.text),
    Key("hf_hub_url", "tasks.train.path", read=read.text),
    Key("ms_hub_url", "tasks.train.path", read=read.text, differs="the id of ModelScope, looked up on Hugging Face"),
    Key("script_url", why="code that loads data is not run here"),
    Key("formatting", "tasks.format", read=read.one_of(dict.fromkeys(("alpaca", "sharegpt", "openai"), True))),
    Key("ranking", "supervised fine-tuning", read=read.only(False, instead=_REFUSED)),
    Key("subset", "tasks.train.config", read=read.text),
    Key("split", "tasks.train.split", read=read.text),
    Key("revision", "tasks.train.revision", read=read.text),
    Key("folder", why="name the files in tasks.train.path"),
    Key("num_samples", "tasks.max_rows", read=read.count, differs="chosen at random by mix.seed"),
    *(Key(f"columns.{name}", "tasks.columns", read=read.text) for name in (*_COLUMNS, "history", "system", "tools")),
    *keys("columns.chosen columns.rejected columns.kto_tag", read=read.never, why=read.REFUSED, idle=(False,)),
    *keys("columns.images columns.videos columns.audios", why=_PICTURES),
    *(Key(f"tags.{name}", "tasks.columns and tasks.speakers", read=read.text) for name in (*_ROLES, *_TAGS)),
)


def _mix(found: Mapping[str, Found], at: Places, to: Ledger) -> Mixed:
    """The tasks of the datasets that are named."""
    if "datasets" not in found:
        raise to.wrong("dataset", "no dataset is named")
    info, folder = _info(found, at, to)
    names = found["datasets"].value
    labels = _data.task_names(names)
    mixed = Mixed([_task(name, label, info, folder, found, to) for name, label in zip(names, labels, strict=True)])
    if "system" in found:
        mixed.settings["system"] = found["system"].value
    _interleave(found, mixed, to)
    if "eval_datasets" in found:
        _validate_on(found["eval_datasets"], mixed, info, folder, to)
    elif "validation" in found:
        to.approximated(found["validation"].key, _data.keep_for_validation(mixed, found["validation"].value))
    return mixed


def _info(found: Mapping[str, Found], at: Places, to: Ledger) -> tuple[dict[str, Any], Places]:
    """What is said of every dataset, and where their files lie: beside that file."""
    given = found["dataset_dir"].value if "dataset_dir" in found else _FOLDER
    if given == "ONLINE":
        return {}, at
    folders = [Path(given), at.file.parent / given, at.file.parent]
    path = next((folder / _INFO for folder in folders if (folder / _INFO).is_file()), None)
    if path is None:
        tried = ", ".join(dict.fromkeys(str(folder / _INFO) for folder in folders))
        raise RecipeError(
            f"the datasets are described nowhere: not found: {tried}", where=str(to.file), fix="Set dataset_dir."
        )
    return read_json_mapping(path), replace(at, more=(path.parent,))


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an entry, those of its columns and tags with what they stand in."""
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        inside = name in ("columns", "tags") and isinstance(value, dict)
        flat |= {f"{name}.{key}": one for key, one in value.items()} if inside else {name: value}
    return flat


def _task(name: str, label: str, info: Mapping[str, Any], at: Places, found: Mapping[str, Found], to: Ledger) -> Task:
    """The task of a dataset."""
    entry = info.get(name) if info else {"hf_hub_url": name}
    if not isinstance(entry, dict):
        raise to.wrong("dataset", f"'{name}' is not described in {_INFO}")
    said = to.read(_flat(entry), ROW_KEYS, f"{name}.")
    source = _source(name, said, at, to)
    alpaca = entry.get("formatting", "alpaca") == "alpaca"
    settings = (_alpaca if alpaca else _conversation)(source, entry, said, to, name)
    if "last" in found and found["last"].value and settings["format"] == "messages":
        settings["supervise"] = "last"
    task = Task(label, settings | {"too_long": "truncate_right", "bad_rows": "drop"}, source.rows)
    if wanted := said.get("num_samples"):
        differs = _data.limited(task, wanted.value)
        (to.approximated if differs else to.carried)(wanted.key, differs or "all of its rows")
    if "max_rows" in found and (task.rows is None or task.rows > found["max_rows"].value):
        _data.limited(task, found["max_rows"].value)
    return task


def _source(name: str, said: Mapping[str, Found], at: Places, to: Ledger) -> Source:
    path = next((said[key] for key in ("hf_hub_url", "ms_hub_url", "file_name") if key in said), None)
    if path is None:
        raise to.wrong(name, f"its rows are nowhere: {_INFO} gives no file_name and no hf_hub_url")
    more = {"config": "subset", "split": "split", "revision": "revision"}
    return at.source(path.value, path.key, **{role: said[key].value for role, key in more.items() if key in said})


def _columns(entry: Mapping[str, Any], said: Mapping[str, Found], source: Source) -> dict[str, str]:
    """The column of each role; where columns are given, those left out are none."""
    given = {key.partition(".")[2]: one.value for key, one in said.items() if key.startswith("columns.")}
    return given if "columns" in entry else {role: column for role, column in _COLUMNS.items() if source.has(column)}


def _alpaca(
    source: Source, entry: Mapping[str, Any], said: Mapping[str, Found], to: Ledger, name: str
) -> dict[str, Any]:
    columns = _columns(entry, said, source)
    prompt = [columns[role] for role in ("prompt", "query") if role in columns]
    if not prompt or "response" not in columns:
        what = "a question and an answer, so there is nothing to supervise"
        raise to.wrong(
            f"{name}.columns", f"do not name {what}", fix="Plain text is trained by LLaMA-Factory's stage pt."
        )
    if "history" in columns:
        past = columns["history"]
        return _data.history(source, past, prompt, columns["response"], columns.get("system"))
    return _data.pair(source, _data.lines_of(prompt), columns["response"], columns.get("system"))


def _conversation(
    source: Source, entry: Mapping[str, Any], said: Mapping[str, Found], to: Ledger, name: str
) -> dict[str, Any]:
    columns = _columns(entry, said, source)
    if "messages" not in columns:
        raise to.wrong(f"{name}.columns", "do not name the messages")
    tags = {key.partition(".")[2]: one.value for key, one in said.items() if key.startswith("tags.")}
    speakers = {tags[tag]: role for tag, role in _ROLES.items() if tag in tags}
    if (call := tags.get("function_tag")) and call not in _CALLS:
        speakers[call] = "assistant"
        to.approximated(f"{name}.tags.function_tag", "a call is trained as the text that it is")
    return _data.conversation(
        source,
        columns["messages"],
        role=tags.get("role_tag"),
        content=tags.get("content_tag"),
        system=columns.get("system"),
        tools=columns.get("tools"),
        speakers=speakers,
    )


def _interleave(found: Mapping[str, Found], mixed: Mixed, to: Ledger) -> None:
    shares = found.get("shares")
    mixing = found["mixing"].value if "mixing" in found else "concat"
    stop = read.one_of({"concat": "", "interleave_under": "first_exhausted", "interleave_over": "all_exhausted"})
    try:
        ends = stop(mixing)
    except ValueError as error:
        raise to.wrong(found["mixing"].key, f"got {mixing}; {error}") from None
    if shares is not None and (not ends or len(shares.value) != len(mixed.tasks)):
        rule = "one for each dataset" if ends else "goes with mix_strategy: interleave_under or interleave_over"
        raise to.wrong(shares.key, rule)
    if ends and len(mixed.tasks) > 1:
        _data.interleave(mixed, shares.value if shares else None, ends)
        if "steps" in found:
            mixed.stop = None
            to.approximated(found["mixing"].key, "weighting; max_steps ends the training")


def _validate_on(given: Found, mixed: Mixed, info: Mapping[str, Any], at: Places, to: Ledger) -> None:
    """Measure the validation loss on a dataset of its own, where it is plain whose it is."""
    if len(given.value) != 1 or len(mixed.tasks) != 1:
        to.left_out(given.key, "whose rows they are is not said; name them as the validation of a task")
        return
    entry = info.get(given.value[0])
    if not isinstance(entry, dict):
        raise to.wrong(given.key, f"'{given.value[0]}' is not described in {_INFO}")
    name = given.value[0]
    other = _task(name, name, info, at, {}, to).settings
    own = mixed.tasks[0].settings
    differing = {key: other.get(key, {}) for key in ("format", "columns") if other.get(key) != own.get(key)}
    own["validation"] = {**other["train"], **differing}


def _load(file: Path) -> dict[str, Any]:
    return read_keys(file, "configuration of LLaMA-Factory")


TOOL = Tool(
    name="LLaMA-Factory",
    reads="a YAML file of training arguments; its dataset_info.json lies in dataset_dir, in data or beside it",
    load=_load,
    keys=KEYS,
    row_keys=ROW_KEYS,
    defaults=trainer.DEFAULTS | {"rank": 8, "dropout": 0, "targets": ["all"], "train.max_length": 2048},
    mix=_mix,
)
