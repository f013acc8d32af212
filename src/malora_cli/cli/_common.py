"""What several commands share."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from malora_cli.characters import visible
from malora_cli.cli import _completion
from malora_cli.cli._terminal import say
from malora_cli.cli._voice import Volume, aside, begin, volume
from malora_cli.errors import MaloraError

if TYPE_CHECKING:
    from malora_cli.recipe import LoadedRecipe, Recipe
    from malora_cli.results import RunRecord

#: The warnings that have been shown.
_told: set[str] = set()

RunArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN]",
        help="Run folder, or its name under --runs; default: the newest.",
        autocompletion=_completion.runs,
    ),
]
MovedArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="New places of files that were moved: model.base, mix.", show_default=False
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings over the recipe's.",
        show_default=False,
        autocompletion=_completion.overrides,
    ),
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe file, or the name of a shipped one.",
        show_default=False,
        autocompletion=_completion.recipes,
    ),
]
StepOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Use the checkpoint of this step, not the finished adapter.")
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the model; a run cannot allow that."),
]
CodeOption = Annotated[
    bool, typer.Option("--allow-code", help="Run generated code, in a sandbox that is tested first.")
]
FullOption = Annotated[
    bool, typer.Option("--full", help="Show all tasks on a terminal too; pipes and files always get them.")
]
MeasureOption = Annotated[
    bool, typer.Option("--step/--no-step", help="Measure a step on the longest rows, for its time and memory.")
]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Folder of the runs.")]


def quieten_libraries() -> None:
    """Set what the libraries underneath read as they are imported, some of them early: no bars, logs only if asked."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, on starting and stopping
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' bar while it converts a GGUF file
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    if volume() is not Volume.VERBOSE:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # it logs what it then raises


def prepare_libraries() -> None:
    """Make the libraries underneath speak only when the user can do something about it. Before they are imported."""
    begin("loading libraries")
    quieten_libraries()
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    _told.clear()
    logging.setLogRecordFactory(_log_record)
    if (theirs := sys.modules.get("transformers.utils.logging")) is not None:  # which has read the environment by then
        theirs.disable_progress_bar()
    if volume() is Volume.VERBOSE:
        return
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on kernels that it would like to have
    # Their warnings are for programmers; ours are one line each.
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"malora_cli\..*")


def _show_warning(message: Warning | str, *_: object) -> None:
    """Print a warning, once for all that a command does: each run of a comparison reads the same rows."""
    if str(message) in _told:
        return
    _told.add(str(message))
    with suppress(MaloraError):  # no warning is worth ending what it warns of
        aside(f"warning: {message}")


def _log_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    """What a library logs, which may quote a file."""
    record = logging.LogRecord(*arguments, **options)
    record.msg, record.args = visible(record.getMessage()), None
    return record


def names_in(text: str) -> list[str]:
    """``"a, b"`` as names, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@contextmanager
def interruptible(record: RunRecord | None = None) -> Iterator[None]:
    """On Ctrl-C, say how to go on before the command ends.

    Args:
        record: The run that is being trained; None where the same command goes on by itself.
    """
    from malora_cli.errors import StoppedError

    try:
        yield
    except StoppedError as stopped:
        if record is None:
            raise StoppedError("the same command goes on from here", stopped.exit_code - 128) from None
        raise
    except KeyboardInterrupt:
        if record is None:
            say("interrupted: the same command goes on from here", err=True)
        elif record.exists:
            from malora_cli.train.resuming import how_to_go_on

            say(f"interrupted: {how_to_go_on(record)}", err=True)
        else:
            say("interrupted before anything was written", err=True)
        raise


def find_and_tell(run: Path | None, folder: Path, *, err: bool = False) -> RunRecord:
    """The run a user means; says which it is when none was named, on standard error where ``err`` is set.

    Raises:
        RunError: There is no such run.
    """
    from malora_cli.errors import RunError
    from malora_cli.results import find_run

    if run is not None and "=" in str(run) and not run.exists():
        raise RunError("RUN must come before KEY=VALUE", where=str(run), fix=f"Write RUN {run}.")
    record = find_run(run, folder)
    if run is None and volume() is not Volume.QUIET:
        say(f"newest run: {record.path}", err=err)
    return record


def read_recipe(recipe: str | Path, overrides: Sequence[str] = (), *, model_only: bool = False) -> LoadedRecipe:
    """`load_named`, and say whose Python code is going to be run."""
    from malora_cli.named import load_named

    loaded = load_named(recipe, overrides, model_only=model_only)
    tell_of_code(loaded, metrics=not model_only)
    return loaded


def recipe_of_run(record: RunRecord, overrides: Sequence[str], *, trust: bool, model_only: bool = False) -> Recipe:
    """The recipe of a run, with what the command line says of where its files lie now.

    Args:
        record: The run.
        overrides: Where files lie now, and settings that leave the run the same.
        trust: Whether Python code of the model may be run.
        model_only: As in `load_recipe`.

    Raises:
        MaloraError: The recipe is wrong, or an override would make another run of it.
    """
    from malora_cli.named import with_run

    own = with_run(record, trust=trust)
    loaded = read_recipe(record.recipe_path, [*overrides, *own], model_only=model_only)
    if overrides:
        from malora_cli.train.resuming import check_same_recipe

        check_same_recipe(record, loaded, may_move=True)
    return loaded.recipe


@contextmanager
def telling_of_moves(recipe: Recipe) -> Iterator[None]:
    """Where a file of a run's recipe is no longer there, say how to name another place for it."""
    from malora_cli.places import gone

    try:
        yield
    except MaloraError as error:
        if any(path in str(error) for path in gone(recipe.model_dump(mode="json"))):
            error.fix = "Put it back, or add to the command where it lies now: model.base=FOLDER or mix=FILE."
        raise


def tell_of_code(loaded: LoadedRecipe, *, metrics: bool = True) -> None:
    """Say whose Python code is going to be run, where a recipe allows it."""
    if loaded.recipe.model.trust_remote_code:
        from malora_cli.modeling.finding import is_gguf

        if not is_gguf(base := loaded.recipe.model.base):
            say(f"trust_remote_code: Python code that comes with {base} is run", err=True)
    for code in loaded.recipe.mix.code if metrics else ():
        say(f"trust_metric_code: Python code of {code} is run", err=True)
