"""``malora completion``: what makes a shell complete ``malora`` on the Tab key."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add ``malora completion``."""
    app.command("completion")(completion)


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish", "powershell"], typer.Argument(help="The shell.")],
) -> None:
    """Print the script with which a shell completes commands, options, runs, tasks and settings.

    Example: malora completion bash > ~/.local/share/bash-completion/completions/malora

    For one session: source <(malora completion bash), or malora completion fish | source.
    """
    from typer._completion_shared import get_completion_script

    from malora_cli.cli._terminal import say

    script = get_completion_script(prog_name="malora", complete_var="_MALORA_COMPLETE", shell=shell)
    if shell == "bash":  # no blank after `train.steps=`, where the value goes
        script = script.replace("    return 0", '    [[ "${COMPREPLY[*]}" == *= ]] && compopt -o nospace\n    return 0')
    for line in script.splitlines():
        say(line)
