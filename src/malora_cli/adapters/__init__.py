"""The family of mixture-of-LoRA methods: one kernel, one PEFT tuner, one file a preset under ``methods/``.

Importing this package, or ``methods``, loads neither torch nor PEFT; importing ``config`` or ``tuner`` does.
"""
