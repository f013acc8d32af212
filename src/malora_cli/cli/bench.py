"""``malora bench``: what methods cost."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Formats of the frozen weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Device(StrEnum):
    """Where to measure."""

    CPU = "cpu"
    CUDA = "cuda"


def register(app: typer.Typer) -> None:
    """Add ``malora bench``."""
    app.command("bench")(bench)


def bench(
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model as in a recipe; --shape when left out.")
    ] = None,
    shape: Annotated[str, typer.Option(metavar="NAME", help="Sizes of a well-known model, with random weights.")] = (
        "llama2-7b"
    ),
    layers: Annotated[int, typer.Option(min=1, metavar="N", help="Layers of a model of that shape.")] = 1,
    methods: Annotated[
        str, typer.Option(metavar="A,B", help="Rows; all methods, the frozen model and loop-molora when left out.")
    ] = "",
    tokens: Annotated[int, typer.Option(min=4, metavar="N", help="Tokens of a step, or of the prompt.")] = 512,
    dtype: Annotated[
        Dtype, typer.Option(help="Format of the frozen weights; bfloat16 computes under autocast.")
    ] = Dtype.FLOAT32,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.CPU,
    dropout: Annotated[
        float | None, typer.Option(min=0, max=0.99, metavar="P", help="Dropout of all rows; each its own if left out.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Turns of every row; medians are over these.")] = 7,
    decode: Annotated[bool, typer.Option("--decode", help="Time decoding with a cache at batch 1 and 16.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
) -> None:
    """Time every method's training step, or decoding, side by side on the same frozen weights, against PEFT's LoRA.

    Example: malora bench --model smollm2-135m-instruct --methods malora,molora,loop-molora --tokens 512
    """
    from malora_cli.bench.workload import Workload, check_rows
    from malora_cli.cli._common import names_in, prepare_libraries
    from malora_cli.cli._terminal import result_console, say
    from malora_cli.cli._voice import begin, phases_shown_by

    workload = Workload(model, shape, layers, tokens, dtype.value, device.value, dropout)
    workload.check()
    rows = check_rows(names_in(methods))
    prepare_libraries()
    from malora_cli.bench.run import run_decode, run_steps, write_figures
    from malora_cli.cli._bench_tables import decode_table, step_table

    console = result_console()
    with (
        console.status("loading") as status,
        phases_shown_by(status.update) if console.is_terminal else nullcontext(),
    ):
        if decode:
            decoded = run_decode(rows, workload, rounds=rounds, tick=begin)
            console.print(decode_table(decoded))
        else:
            steps = run_steps(rows, workload, rounds=rounds, tick=begin)
            console.print(step_table(steps))
    if json_file is not None:
        write_figures(json_file, workload, decoded if decode else steps)
        say(f"figures: {json_file}")
