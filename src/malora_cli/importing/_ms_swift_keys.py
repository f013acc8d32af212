"""The arguments of ``swift sft`` and the parts of its datasets."""

from __future__ import annotations

import json
from typing import Any

from malora_cli.importing import _readers as read
from malora_cli.importing import _trainer as trainer
from malora_cli.importing._base import Key, Said, by_name, keys, known

_LOSSES = ("default", "last_round", "all")


def _scale(value: Any) -> Any:
    """What is supervised: the words of ``default+ignore_empty_think`` but for the first change weights of tokens."""
    base, *others = read.text(value).split("+")
    if base not in _LOSSES:
        base, others = "default", [base, *others]
    if base == "all":
        return Said(why="answers alone are trained here")
    differs = f"without {', '.join(others)}: every supervised token counts alike" if others else ""
    return Said("last" if base == "last_round" else "all", differs=differs)


def _json_mapping(value: Any) -> Any:
    try:
        return read.mapping(json.loads(value) if isinstance(value, str) else value)
    except (ValueError, RecursionError):
        raise ValueError("must be a mapping, or JSON of one") from None


def _target(value: Any) -> Any:
    return read.linears(value if isinstance(value, str) else read.names(value))


KEYS = known(
    trainer.KEYS,
    (
        *keys("model model_id_or_path", to="model.base", read=read.text),
        Key("model_revision", "model.revision", read=read.text),
        Key("model_type", differs="told from the model's own config.json"),
        *keys("torch_dtype dtype", to="model.dtype", read=read.dtype),
        Key("attn_impl", "model.attention", read=read.attention),
        Key("use_hf", "ids are those of Hugging Face", "use_hf", read.switch),
        Key(
            "task_type",
            "supervised fine-tuning",
            read=read.only("causal_lm", instead="classes and rewards are its own"),
        ),
        *keys("tuner_type train_type sft_type", to="method.name", part="adapter", read=read.tuner("lora")),
        Key("tuner_backend", "peft", read=read.one_of({"peft": None, "unsloth": None})),
        Key("lora_rank", "method.r", "rank", read.count),
        Key("lora_alpha", "method.lora_alpha", "alpha", read.positive),
        Key("lora_dropout", "method.lora_dropout", "dropout", read.ratio),
        *keys("lora_dropout_p", to="method.lora_dropout", part="dropout", read=read.ratio),
        *keys("target_modules lora_target_modules", to="method.target_modules", part="targets", read=_target),
        Key("target_regex", why="an expression; name the linears in method.target_modules"),
        Key("target_parameters", why="linears alone are adapted here"),
        Key("use_rslora", "method.name", "rslora", read.switch),
        Key("use_dora", "method.name", "dora", read.switch),
        Key("lora_bias", why="biases are not trained here", idle=("none",)),
        Key("lora_dtype", differs="the adapter is float32", idle=("float32",)),
        Key("lorap_lr_ratio", why="both matrices have one learning rate here"),
        Key("init_weights", why="a LoRA begins as PEFT's does", idle=("true", True)),
        Key("modules_to_save", why="nothing but the adapter is trained here"),
        *keys("freeze_llm freeze_vit freeze_aligner", why="only text is trained here", idle=(True, False)),
        Key("freeze_parameters_ratio", why=trainer.BASE_STAYS, idle=(0,)),
        *keys("freeze_parameters trainable_parameters rope_scaling new_special_tokens", why=trainer.BASE_STAYS),
        Key("adapters", why=trainer.OTHER_ADAPTER),
        Key("quant_bits", "model.quantise", "bits", read.bits),
        Key("quant_method", "bitsandbytes", read=read.one_of({"bnb": None})),
        Key("bnb_4bit_quant_type", "model.quantise", differs="nf4 is the format of 4 bits here", idle=("nf4",)),
        Key("bnb_4bit_use_double_quant", "model.quantise", differs="constants are always quantised too", idle=(True,)),
        *keys("bnb_4bit_compute_dtype bnb_4bit_quant_storage", differs="computed in model.dtype"),
        Key("dataset", "tasks", "datasets"),
        Key("val_dataset", "tasks.validation", "val_datasets"),
        *keys("cached_dataset cached_val_dataset", why="name the text they are of as dataset"),
        Key("columns", "tasks.columns", "columns", _json_mapping),
        Key("split_dataset_ratio", "validation", "validation", read.ratio, differs=trainer.VALIDATION),
        Key("interleave_prob", "tasks.weight", "shares", read.numbers),
        Key(
            "stopping_strategy",
            "train.stop",
            "ending",
            read.one_of({"first_exhausted": "first_exhausted", "all_exhausted": "all_exhausted"}),
        ),
        Key("strict", "tasks.bad_rows", "strict", read.switch),
        Key("streaming", differs=trainer.FROM_DISK, idle=(False,)),
        *keys(
            "dataset_shuffle train_dataloader_shuffle", differs="rows are shuffled anew for every pass", idle=(True,)
        ),
        Key("custom_register_path", why="code that loads data is not run here"),
        *keys("external_plugins custom_dataset_info model_name model_author", why="name rows by dataset and columns"),
        Key("template", differs=trainer.TEMPLATE),
        Key("use_chat_template", differs=trainer.TEMPLATE, idle=(True,)),
        Key("system", "system", "system", read.text),
        Key("max_length", "train.max_length", read=read.count),
        Key(
            "truncation_strategy",
            "tasks.too_long",
            "cut",
            read.one_of({"delete": "drop", "left": "truncate_left", "right": "truncate_right", "split": "split"}),
        ),
        Key("loss_scale", "tasks.supervise", "supervise", _scale),
        *keys("packing padding_free", differs=trainer.PACKED, idle=(False,)),
        *keys("packing_length packing_num_proc padding_side", differs=trainer.NEVER_PADDED),
        *keys("agent_template", differs="tools go through the tokenizer's chat template"),
        *keys("enable_thinking add_non_thinking_prefix", differs="rows without reasoning are asked without it"),
        Key("gradient_accumulation_steps", "train.batch_size, as a factor of the rows", "accumulate", read.count),
        Key(
            "NPROC_PER_NODE",
            "train.batch_size, as a factor of the rows",
            "processes",
            read.count,
            differs=f"{trainer.PROCESSES}; rows of a step are of all processes",
        ),
        *keys(
            "CUDA_VISIBLE_DEVICES ASCEND_RT_VISIBLE_DEVICES NNODES NODE_RANK MASTER_ADDR MASTER_PORT",
            why=trainer.PROCESSES,
        ),
        *keys(
            "sequence_parallel_size device_map max_memory ddp_timeout use_ray zero_hpz_partition_size",
            why=trainer.PROCESSES,
            idle=(1, False),
        ),
        *keys("rlhf_type reward_model reward_funcs ref_model beta", read=read.never, why=read.REFUSED, idle=(False,)),
        *keys(
            "enable_dft_loss enable_channel_loss", why="the loss here is the mean over supervised tokens", idle=(False,)
        ),
        *keys("use_galore use_swift_lora", why="AdamW trains a LoRA of PEFT here", idle=(False,)),
        Key("lisa_activated_layers", why="AdamW trains the whole adapter", idle=(0,)),
        Key("router_aux_loss_coef", why=trainer.BASE_STAYS, idle=(0,)),
        Key("resume_only_model", why=trainer.RESUME, idle=(False,)),
        Key("optimizer", why="AdamW is the only optimiser here"),
        *keys(
            "max_new_tokens temperature top_k top_p repetition_penalty num_beams stop_words",
            why=trainer.NO_GENERATION,
            idle=(0,),
        ),
        *keys("eval_dataset eval_limit eval_generation_config response_prefix", why=trainer.NO_GENERATION),
        *keys(
            "dataset_num_proc load_from_cache_file lazy_tokenize download_mode shuffle_buffer_size",
            differs=trainer.SPEED,
        ),
        *keys("local_repo_path val_dataset_shuffle template_backend", differs=trainer.SPEED),
        *keys(
            "model_kwargs max_pixels norm_bbox vit_lr aligner_lr vit_gradient_checkpointing",
            why="only text is trained here",
        ),
        *keys(
            "add_version create_checkpoint_symlink ignore_args_error load_args load_data_args", differs=trainer.SHOWN
        ),
        Key("hub_token", why="hubs take it from their environment variables"),
        *keys("MAX_PIXELS IMAGE_FACTOR PYTORCH_CUDA_ALLOC_CONF", why="set environment variables in the shell"),
    ),
)

ROW_KEYS = by_name(
    Key("path", "tasks.train.path", read=read.text),
    Key("subset", "tasks.train.config", read=read.text),
    Key("#count", "tasks.max_rows", differs="chosen at random by mix.seed; more than there are become tasks.repeats"),
)
