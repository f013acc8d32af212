"""``--nproc``: torchrun underneath."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from malora_cli.errors import RunError
from malora_cli.modeling.device import own_device
from malora_cli.train.ranks import too_few_gpus


def launch(processes: int, arguments: Sequence[str], device: str = "auto") -> int:
    """Run the command line in several processes of this machine, which train on one batch together.

    Args:
        processes: How many; on a machine with GPUs, one for each.
        arguments: Of the command line, without ``--nproc``.
        device: The recipe's ``model.device``.

    Returns:
        The exit code: 0, or that of the process that failed first, which has said why itself.

    Raises:
        RunError: There are fewer GPUs; or a process died without a word, and the others were ended.
        ModelError: The device is not there.
    """
    if own_device(device).type == "cuda" and processes > (there := torch.cuda.device_count()):
        raise too_few_gpus(processes, there, "--nproc")
    # Several processes would each take every core otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "malora_cli", *arguments)
    except SignalException as error:  # the processes have been told, and have finished their step
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise RunError(
                f"process {rank + 1} of {processes} died by {signal.Signals(-failure.exitcode).name}, and the others "
                "were ended",
                where="--nproc",
                fix="Go on from the newest checkpoint with --resume. A process that is killed has often run out of "
                "memory.",
            ) from error
        return int(failure.exitcode) or 1
    return 0
