"""The keys of axolotl's YAML file and of its datasets."""

from __future__ import annotations

from typing import Any

from malora_cli.importing import _readers as read
from malora_cli.importing import _trainer as trainer
from malora_cli.importing._base import Key, Said, by_name, keys, known

#: The keys of a type that a file spells out.
USER_DEFINED = (
    "field_instruction field_input field_output field_system system_prompt format no_input_format system_format"
)


def _half(value: Any) -> Any:
    if value in ("auto", "full"):
        return Said(True, differs="the frozen weights are bfloat16, the adapter float32")
    return read.switch(value)


def _attention(name: str) -> Any:
    return lambda value: name if read.switch(value) else None


def _checkpointing(value: Any) -> Any:
    if value in ("unsloth", "offload", "offload_disk"):
        return Said(True, differs="activations are computed again, not put elsewhere")
    return read.switch(value)


def _answers(value: Any) -> Any:
    if read.names(value) == ["assistant"]:
        return Said()
    return Said(why="answers alone are trained here")


KEYS = known(
    [key for key in trainer.KEYS if not key.name.startswith(("per_device", "num_train", "lr_scheduler_type", "optim"))],
    (
        Key("base_model", "model.base", read=read.text),
        Key("revision_of_model", "model.revision", read=read.text),
        *keys("trust_remote_code", to="model.trust_remote_code", read=lambda value: read.switch(value) or None),
        *keys("model_type tokenizer_type processor_type tokenizer_use_fast tokenizer_legacy", differs=trainer.SPEED),
        *keys("base_model_config tokenizer_config", why="model and tokenizer come from one place, model.base"),
        Key("adapter", "method.name", "adapter", read.tuner("lora", "qlora")),
        Key("lora_r", "method.r", "rank", read.count),
        Key("lora_alpha", "method.lora_alpha", "alpha", read.positive),
        Key("lora_dropout", "method.lora_dropout", "dropout", read.ratio),
        Key("lora_target_modules", "method.target_modules", "targets", read.linears),
        Key(
            "lora_target_linear",
            "method.target_modules",
            "targets",
            lambda value: ["all"] if read.switch(value) else None,
        ),
        Key("peft_use_dora", "method.name", "dora", read.switch),
        Key("peft_use_rslora", "method.name", "rslora", read.switch),
        Key("lora_model_dir", why=trainer.OTHER_ADAPTER),
        Key("lora_modules_to_save", why="nothing but the adapter is trained here"),
        *keys(
            "lora_target_parameters peft_layers_to_transform peft_layers_pattern",
            why="linears of all layers are adapted",
        ),
        Key("peft", why="a LoRA begins as PEFT's does"),
        *keys("lora_fan_in_fan_out lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_on_cpu", differs=trainer.SPEED),
        Key("loraplus_lr_ratio", why="both matrices have one learning rate here"),
        *keys("relora relora_steps", why="an adapter is never merged in the course of training", idle=(False,)),
        Key("load_in_4bit", "model.quantise", "bits", lambda value: 4 if read.switch(value) else None),
        Key("load_in_8bit", "model.quantise", "bits", lambda value: 8 if read.switch(value) else None),
        *keys("gptq gptq_disable_exllama", why="bases are quantised by bitsandbytes here", idle=(False,)),
        *keys("bf16 bfloat16", to="model.dtype", part="bf16", read=_half),
        *keys("fp16 float16", to="model.dtype", part="fp16", read=read.switch),
        Key("flash_attention", "model.attention", read=_attention("flash_attention_2")),
        Key("sdp_attention", "model.attention", read=_attention("sdpa")),
        Key("flex_attention", "model.attention", read=_attention("flex_attention")),
        Key("eager_attention", "model.attention", read=_attention("eager")),
        Key(
            "xformers_attention",
            "model.attention",
            read=_attention("sdpa"),
            differs="sdpa takes its place",
            idle=(False,),
        ),
        Key("gradient_checkpointing", "train.gradient_checkpointing", read=_checkpointing),
        Key("micro_batch_size", "train.micro_batch_size", "rows", read.count),
        Key("batch_size", "train.batch_size", "batch", read.count),
        Key("eval_batch_size", "eval.batch_size", read=read.count),
        Key("num_epochs", "train.epochs", "epochs", read.positive),
        Key("lr_scheduler", "train.schedule", read=read.schedule),
        *keys("cosine_min_lr_ratio cosine_constant_lr_ratio lr_quadratic_warmup", why="the cosine here ends at 0"),
        *keys("lr_groups embedding_lr embedding_lr_scale", why="all is trained at one learning rate here"),
        Key("optimizer", "AdamW", read=read.optimiser),
        *keys("optim_args optim_target_modules", why="AdamW keeps its usual constants here"),
        Key("sequence_len", "train.max_length", read=read.count),
        Key(
            "excess_length_strategy",
            "tasks.too_long",
            "cut",
            read.one_of({"drop": "drop", "truncate": "truncate_right", "raise": "error"}),
        ),
        Key("min_sample_len", why="short rows are trained too"),
        *keys(
            "sample_packing eval_sample_packing",
            differs=trainer.PACKED,
            idle=(False,),
        ),
        *keys("pad_to_sequence_len batch_flattening", differs=trainer.NEVER_PADDED, idle=(False,)),
        *keys(
            "sample_packing_group_size sample_packing_bin_size sample_packing_sequentially",
            differs="rows are packed, best fit first",
        ),
        Key("train_on_inputs", why="prompts are never trained here", idle=(False,)),
        Key("datasets", "tasks", "datasets", read.mappings),
        Key("test_datasets", "tasks.validation", "test_datasets", read.mappings),
        Key("pretraining_dataset", "supervised fine-tuning", read=read.only(instead="plain text is not trained here")),
        Key("val_set_size", "validation", "validation", read.number, differs=trainer.VALIDATION),
        Key("shuffle_merged_datasets", differs="rows are shuffled anew for every pass", idle=(True,)),
        Key(
            "dataset_exact_deduplication",
            why="equal rows stay; `malora check` says which test rows are also trained",
            idle=(False,),
        ),
        *keys("dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory", differs=trainer.SPEED),
        Key("skip_prepare_dataset", differs=trainer.SPEED, idle=(False,)),
        *keys(
            "chat_template chat_template_jinja",
            differs=trainer.TEMPLATE,
        ),
        Key("default_system_message", "system", "system", read.text),
        *keys("special_tokens tokens eot_tokens added_tokens_overrides", why="the tokenizer stays as it is here"),
        *keys("resize_token_embeddings_to_32x fix_untrained_tokens unfrozen_parameters", why=trainer.BASE_STAYS),
        *keys("rl trl reward_model process_reward_model", read=read.never, why=read.REFUSED, idle=(False,)),
        *keys("evals_per_epoch", to="train.eval_every", part="evals_per_epoch", read=read.count),
        *keys("saves_per_epoch", to="train.checkpoint_every", part="saves_per_epoch", read=read.count),
        Key("early_stopping_patience", why="remedies.patience stops single tasks"),
        Key("auto_resume_from_checkpoints", why=trainer.RESUME, idle=(False,)),
        Key("wandb_project", "train.report_to: wandb", "wandb"),
        *keys(
            "wandb_entity wandb_mode wandb_watch wandb_log_model wandb_run_id mlflow_tracking_uri",
            why=trainer.TRACKER_ENV,
        ),
        Key("wandb_name", "output.name", "run_name", read.text),
        Key("mlflow_experiment_name", "train.report_to: mlflow", "mlflow"),
        Key("use_tensorboard", "train.report_to: tensorboard", "tensorboard", lambda value: read.switch(value) or None),
        Key("use_comet", why="not a tracker that is known here", idle=(False,)),
        *keys(
            "eval_table_size eval_max_new_tokens do_causal_lm_eval do_bench_eval",
            why=trainer.NO_GENERATION,
            idle=(False,),
        ),
        *keys("noisy_embedding_alpha", why="no noise is put on embeddings here"),
        *keys("loss_watchdog_threshold loss_watchdog_patience", differs="a loss that is not finite stops a run"),
        *keys("plugins", why="nothing of it is known here"),
        *keys(
            "liger_rope liger_rms_norm liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy",
            differs=trainer.SPEED,
        ),
        *keys(
            "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp",
            differs=trainer.SPEED,
        ),
        *keys(
            "gc_steps low_cpu_mem_usage cut_cross_entropy unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o",
            differs=trainer.SPEED,
        ),
        *keys("debug strict save_safetensors profiler_steps", differs=trainer.SHOWN),
        *keys(
            "fsdp_final_state_dict_type fsdp_version device_map max_memory gpu_memory_limit ddp world_size",
            why=trainer.PROCESSES,
        ),
        *keys(
            "sequence_parallel_degree context_parallel_size tensor_parallel_size dp_shard_size", why=trainer.PROCESSES
        ),
        *keys(
            "dp_replicate_size use_ray ray_num_workers ray_run_name qlora_sharded_model_loading",
            why=trainer.PROCESSES,
            idle=(False,),
        ),
        *keys("push_dataset_to_hub hf_use_auth_token", why=trainer.NO_HUB, idle=(False,)),
    ),
)

ROW_KEYS = by_name(
    Key("path", "tasks.train.path", read=read.text),
    Key("type", "tasks.format and tasks.columns"),
    Key("split", "tasks.train.split", read=read.text),
    Key("name", "tasks.train.config", read=read.text),
    Key("revision", "tasks.train.revision", read=read.text),
    Key("data_files", "tasks.train.path"),
    Key("ds_type", differs="told from the file's name"),
    Key("shards", "tasks.max_rows", read=read.count, differs="as many rows, chosen at random by mix.seed", idle=(1,)),
    Key("shards_idx", differs="which rows is chosen at random"),
    Key("weight", "tasks.weight", read=read.positive, differs="how often rows of it are drawn"),
    Key("field_messages", "tasks.columns.messages", read=read.text),
    Key("field_tools", "tasks.columns.tools", read=read.text),
    Key("field_system", "tasks.columns.system", read=read.text),
    Key("message_field_role", "tasks.columns.role", read=read.text),
    Key("message_field_content", "tasks.columns.content", read=read.text),
    Key("message_property_mappings", "tasks.columns.role and content", read=read.mapping),
    Key("roles", "tasks.speakers", read=read.mapping),
    Key("roles_to_train", "what is supervised", read=_answers),
    Key("train_on_eos", "what is supervised", differs="the mark that ends an answer is trained", idle=("turn",)),
    Key("train_on_eot", "what is supervised", differs="the mark that ends an answer is trained", idle=("turn",)),
    Key(
        "message_field_training",
        differs="an answer of the weight 0, or train: false, is not trained",
        idle=("weight", "train"),
    ),
    Key("message_field_training_detail", why="a whole answer is trained or none of it"),
    Key("drop_system_message", why="write system: '' in the mix", idle=(False,)),
    *keys("chat_template chat_template_jinja conversation", differs=trainer.TEMPLATE),
    *keys("field_thinking template_thinking_key split_thinking", differs="reasoning is found under its usual names"),
    Key("field", why="plain text is not trained here"),
    Key("trust_remote_code", why="code that loads data is not run here", idle=(False,)),
    *keys("preprocess_shards", differs=trainer.SPEED),
    *(Key(f"type.{name}", "tasks.columns", read=read.text) for name in USER_DEFINED.split()),
)
