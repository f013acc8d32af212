"""``malora chat``: talk to a run, an exported adapter or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from malora_cli.cli import _completion
from malora_cli.cli._common import RunsOption, StepOption, TrustOption


def register(app: typer.Typer) -> None:
    """Add ``malora chat``."""
    app.command("chat")(chat)


def chat(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|MODEL]",
            help="Run folder, or its name under --runs; default: the newest. Or a model: a short name, hub id, folder, "
            "GGUF file, exported adapter or LoRA.",
            autocompletion=_completion.runs,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings: model.* of a model; of a run model.device, and model.base or mix if these were moved.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Use the system prompt and max_new_tokens of this task.",
            autocompletion=_completion.tasks,
        ),
    ] = None,
    mix: Annotated[
        str | None, typer.Option(metavar="MIX", help="Take --task from this mix; default: the run's.")
    ] = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="After each answer show the load of the experts and the gate entropy.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(metavar="base", help="Also show the answers of the base model.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest answer; default: the task's, else 512.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, metavar="T", help="Sample at this temperature; 0 is greedy.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed for --temperature; default: random.")
    ] = None,
    step: StepOption = None,
    runs: RunsOption = Path("runs"),
    trust: TrustOption = False,
) -> None:
    """Talk to a run, an exported adapter or a base model, through the chat template.

    On a terminal: /new starts a new conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer. Otherwise all of
    standard input is one question, and its answer is all that is printed.

    Example: malora chat runs/quickstart --task chain_sum
    """
    from malora_cli.cli._chat import Asked, found, opened
    from malora_cli.cli._conversation import hold, piped_question

    asked = Asked(run, settings or [], task, mix, experts, against, max_new_tokens, temperature, seed, step)
    whom = found(asked, runs, trust=trust)
    question = piped_question()
    hold(opened(asked, whom), question)
