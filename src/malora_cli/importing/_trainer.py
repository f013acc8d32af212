"""Keys of transformers' Trainer, which LLaMA-Factory, ms-swift and TRL share."""

from __future__ import annotations

from malora_cli.importing import _readers as read
from malora_cli.importing._base import Key, keys

#: Why keys are left out that say how many processes share the work.
PROCESSES = "how many processes share the work is said when a run starts: docs/processes.md"
#: What differs where a key decides speed and memory alone.
SPEED = "decided by itself here; what is learned stays the same"
SHOWN = "a run writes its record and shows its progress by itself"
NO_HUB = "a run uploads nothing; `malora merge-export --push-to-hub OWNER/NAME` does"
RESUME = "`malora train RECIPE --resume` goes on with a run"
OTHER_ADAPTER = "a run begins with a new adapter"
TRACKER_ENV = "trackers take it from their environment variables"
NO_GENERATION = "`malora eval` scores a run; max_new_tokens of a task is the longest answer"

BASE_STAYS = "the base model and its tokenizer stay as they are here"
TEMPLATE = "prompts go through the tokenizer's own chat template, or model.chat_template"
PACKED = "rows are always packed, and a step counts rows"
NEVER_PADDED = "rows are packed, never padded"
VALIDATION = "a share of each task's prompts"
FROM_DISK = "rows are read from disk as they are wanted"

#: What a Trainer does where nothing is said.
DEFAULTS = {
    "epochs": 3,
    "rows": 8,
    "accumulate": 1,
    "train.learning_rate": 5e-5,
    "train.schedule": "linear",
    "warmup": 0,
    "train.weight_decay": 0,
    "train.max_grad_norm": 1,
    "seed": 42,
}

KEYS = (
    Key("learning_rate", "train.learning_rate", read=read.positive),
    Key("lr_scheduler_type", "train.schedule", read=read.schedule),
    Key("num_train_epochs", "train.epochs", "epochs", read.positive),
    Key("max_steps", "train.steps", "steps", read.limit),
    Key("per_device_train_batch_size", "train.micro_batch_size", "rows", read.count),
    Key("gradient_accumulation_steps", "train.batch_size, as a factor of the rows", "accumulate", read.count),
    Key("warmup_ratio", "train.warmup_ratio", "warmup", read.ratio),
    Key("warmup_steps", "train.warmup_ratio", "warmup_steps", read.number, differs="as a share of the steps"),
    Key("weight_decay", "train.weight_decay", read=read.number),
    Key("max_grad_norm", "train.max_grad_norm", read=read.number),
    Key("optim", "AdamW", read=read.optimiser),
    Key("adam_beta1", why="AdamW keeps its usual constants here", idle=(0.9,)),
    Key("adam_beta2", why="AdamW keeps its usual constants here", idle=(0.999,)),
    Key("adam_epsilon", why="AdamW keeps its usual constants here", idle=(1e-8,)),
    Key("seed", "train.seed", "seed", read.seed),
    Key("data_seed", "train.seed, and seed then train.init_seed and train.dropout_seed", "data_seed", read.seed),
    Key("bf16", "model.dtype", "bf16", read.switch, differs="the frozen weights are bfloat16, the adapter float32"),
    Key("fp16", "model.dtype", "fp16", read.switch, differs="the frozen weights are float16, the adapter float32"),
    Key("gradient_checkpointing", "train.gradient_checkpointing", read=read.switch),
    Key("logging_steps", "train.log_every", "log_every", read.every),
    Key("eval_strategy", "train.eval_every", "eval_strategy", read.strategy),
    Key("evaluation_strategy", "train.eval_every", "eval_strategy", read.strategy),
    Key("eval_steps", "train.eval_every", "eval_every", read.every),
    Key("save_strategy", "train.checkpoint_every", "save_strategy", read.strategy),
    Key("save_steps", "train.checkpoint_every", "save_every", read.every),
    Key("save_total_limit", "train.keep_checkpoints", read=read.limit),
    Key("load_best_model_at_end", "train.keep_best", "keep_best", read.switch, idle=(False,), differs="1 is kept"),
    Key("per_device_eval_batch_size", "eval.batch_size", read=read.count),
    Key("report_to", "train.report_to", read=read.trackers),
    Key("output_dir", "output.folder", read=read.text),
    Key("run_name", "output.name", "run_name", read.text),
    Key("resume_from_checkpoint", why=RESUME, idle=(False,)),
    Key("ignore_data_skip", why=RESUME, idle=(False,)),
    Key("do_train", "malora train", read=read.switch),
    *keys("do_eval do_predict", why=NO_GENERATION, idle=(False,)),
    Key("predict_with_generate", why=NO_GENERATION, idle=(False,)),
    *keys("metric_for_best_model greater_is_better", differs="the lowest mean validation loss is the best"),
    Key("neftune_noise_alpha", why="no noise is put on embeddings here", idle=(0,)),
    Key("label_smoothing_factor", why="labels are not smoothed here", idle=(0,)),
    Key("lr_scheduler_kwargs", why="the schedules here have no constants of their own"),
    Key("optim_args", why="AdamW keeps its usual constants here"),
    Key("optim_target_modules", why="AdamW trains the whole adapter"),
    Key("save_only_model", why="checkpoints always hold what --resume needs", idle=(False,)),
    Key("overwrite_output_dir", differs="a run folder is never overwritten", idle=(False,)),
    Key("full_determinism", differs="runs on a CPU repeat bit for bit", idle=(False,)),
    Key("tf32", differs=SPEED),
    Key("use_cpu", "model.device", read=lambda value: "cpu" if read.switch(value) else None),
    *keys("group_by_length train_sampling_strategy", differs="rows are packed, never padded; their order is by chance"),
    *keys("ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph", why=PROCESSES),
    *keys("ddp_timeout ddp_backend deepspeed fsdp fsdp_config parallelism_config accelerator_config", why=PROCESSES),
    *keys("local_rank save_on_each_node log_on_each_node average_tokens_across_devices", why=PROCESSES),
    *keys("dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers", differs=SPEED),
    *keys("dataloader_prefetch_factor torch_compile torch_compile_backend torch_compile_mode", differs=SPEED),
    *keys("torch_empty_cache_steps auto_find_batch_size use_liger_kernel liger_kernel_config", differs=SPEED),
    *keys("gradient_checkpointing_kwargs eval_accumulation_steps skip_memory_metrics use_cache", differs=SPEED),
    *keys("bf16_full_eval fp16_full_eval eval_do_concat_batches remove_unused_columns label_names", differs=SPEED),
    Key("dataloader_drop_last", differs="every step has all of its rows", idle=(False,)),
    *keys("logging_strategy logging_first_step logging_dir logging_nan_inf_filter log_level", differs=SHOWN),
    *keys("log_level_replica disable_tqdm include_num_input_tokens_seen include_tokens_per_second", differs=SHOWN),
    *keys("include_for_metrics prediction_loss_only debug", differs=SHOWN),
    Key("eval_on_start", "train.eval_on_start", read=read.switch),
    Key("eval_delay", differs="evaluations come every train.eval_every steps from the beginning"),
    *keys("push_to_hub hub_always_push hub_private_repo", why=NO_HUB, idle=(False,)),
    *keys("hub_model_id hub_token hub_strategy hub_revision", why=NO_HUB),
    *keys("project trackio_space_id", why=TRACKER_ENV),
)
