"""Which processor this is, and what it can do."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """What the processor calls itself, with family and model on x86: one name may stand for several designs.

    Two kinds of "AMD EPYC" differ twofold in the float32 products that oneDNN does a second.
    """
    about = _about()
    name = about.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= about.keys():
        name += f", family {about['cpu family']} model {about['model']}"
    return name


def is_amd() -> bool:
    """Whether AMD made it."""
    return "AuthenticAMD" in (_about().get("vendor_id") or platform.processor())


def _about() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    with suppress(OSError):
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}


def multiplies_bfloat16() -> bool:
    """Whether it multiplies bfloat16 itself; PyTorch does so for others through float32, piece by piece."""
    import torch  # here, for whoever only looks at what is installed

    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
