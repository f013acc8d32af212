"""The ``malora`` command: one module a command, found by discovery, and the one place that catches errors.

Every module here whose name does not start with ``_`` offers ``register(app)``, which adds its command. Heavy rooms
are imported inside the commands, so that ``malora --help`` loads neither torch nor transformers nor datasets.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from malora_cli.errors import MaloraError

_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 something the user can mend, 1 a bug, 130 interrupted.

    Args:
        arguments: The arguments; those of the process by default.
    """
    from malora_cli.cli._terminal import replace_what_cannot_be_shown
    from malora_cli.cli._usage import UsageMistake, as_one_line
    from malora_cli.cli._voice import Volume, end_phase, speak

    options: dict[str, bool] = {}
    speak(Volume.NORMAL)
    code: str | int | None
    replace_what_cannot_be_shown()
    try:
        command = typer.main.get_command(_application())
        code = command(arguments, prog_name="malora", obj=options, standalone_mode=False) or 0
    except SystemExit as ended:  # which nobody reading ends with
        code = 0 if isinstance(ended.__context__, BrokenPipeError) else ended.code
    except MaloraError as error:
        code = _report(error.kind, str(error), error.exit_code, options)
    except UsageMistake as mistake:
        line = as_one_line(mistake)
        code = MaloraError.exit_code if line is None else _report(line.kind, str(line), line.exit_code, options)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:
        code = _report_unforeseen(error, options)
    end_phase()
    raise SystemExit(code)


def _application() -> typer.Typer:
    app = typer.Typer(
        help="Fine-tune a causal language model on many tasks at once, and see what each of them gains or loses.",
        epilog="Start with: malora recipes ls",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    if "_MALORA_COMPLETE" in os.environ:  # a shell asks
        from typer._completion_classes import completion_init

        completion_init()
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")):
        importlib.import_module(f"{__name__}.{module}").register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from malora_cli.cli._terminal import say

        say(f"malora {version('malora')}")
        raise typer.Exit


def _global_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print how long each phase takes, and warnings of libraries.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    from malora_cli.cli._common import quieten_libraries
    from malora_cli.cli._voice import Volume, speak

    context.obj["debug"] = debug
    if quiet and verbose:
        raise MaloraError("it says the opposite of --verbose", where="--quiet", fix="Leave one of them out.")
    speak(Volume.QUIET if quiet else Volume.VERBOSE if verbose else Volume.NORMAL)
    quieten_libraries()


def _report_unforeseen(error: Exception, options: dict[str, bool]) -> int:
    """Report what no command has caught: a place that cannot be read or written, or else a bug."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _report("error", f"{where}{error.strerror}", MaloraError.exit_code, options)
    hint = "" if options.get("debug") else " (run `malora --debug ...` for the traceback)"
    return _report("internal error", f"{type(error).__name__}: {error}{hint}", 1, options)


def _report(kind: str, message: str, code: int, options: dict[str, bool]) -> int:
    """Print an error on the standard error stream, a line for each of its lines, and give back the exit code."""
    from rich.text import Text

    from malora_cli.cli._terminal import error_console

    console = error_console()
    if (rank := os.environ.get("RANK", "0")) != "0":
        kind = f"process {rank}: {kind}"
    with contextlib.suppress(MaloraError):  # it may go where the output went
        if options.get("debug"):
            console.print(Text(traceback.format_exc()))
        for line in message.rstrip("\n").split("\n"):  # as Text, which is never read as markup: paths stay as they are
            console.print(Text.assemble((f"{kind}:", "bold red"), " ", line))
    return code
