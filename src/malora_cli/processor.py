"""What the processor can do."""

from __future__ import annotations

import platform


def multiplies_bfloat16() -> bool:
    """Whether it multiplies bfloat16 itself; PyTorch does so for others through float32, piece by piece."""
    import torch  # here, for whoever only looks at what is installed

    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
