"""Run as a script: what torch says of itself, as JSON. A torch that is broken takes this process with it, not ours."""

from __future__ import annotations

import json


def main() -> None:
    """Print it."""
    import torch

    from malora_cli.processor import multiplies_bfloat16

    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    found = {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": [f"{torch.cuda.get_device_name(at)}, {torch.cuda.mem_get_info(at)[1] / 2**30:.0f} GiB" for at in cards],
        "cuda_built": torch.version.cuda,
        "triton": _triton() if cards else None,
        "auto": "bfloat16" if cards and torch.cuda.is_bf16_supported(including_emulation=False) else "float32",
        "multiplies_bfloat16": multiplies_bfloat16(),
        "mps": torch.backends.mps.is_available(),
    }
    print(json.dumps(found))


def _triton() -> str:
    """Why Triton's kernels are not used on the first GPU; empty where they are."""
    try:
        import torch

        from malora_cli.adapters.entrywise import failing, unasked

        return unasked() or failing(torch.device("cuda", 0))
    except Exception as error:  # of a torch that is broken in other ways than this script looks for
        return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main()
