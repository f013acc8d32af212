"""The one exception tree of the toolkit.

    MaloraError          anything a user can mend; the command line prints it as one line and exits with 2
    ├── RecipeError      a recipe, a mix or an override is wrong
    ├── DataError        a dataset, a row or a column is wrong
    ├── ModelError       a base model or an adapter cannot be had
    ├── RunError         a run folder is missing, in the way or damaged
    │   └── DivergedError    training ended in a loss, gradient or weight that is NaN or infinite
    └── StoppedError     a run was told to stop

Every message states what is wrong, where, why, and what to do about it. It is caught once, in
``malora_cli.cli``; ``--debug`` shows the traceback.
"""

from __future__ import annotations


class MaloraError(Exception):
    """Something the user can mend.

    Args:
        what: What is wrong, with the value that is.
        where: The file (and line), task or field it was found in.
        fix: What to do about it, as one instruction.
    """

    exit_code = 2
    kind = "error"  # what stands before the message

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        located = f"{self.where}: {self.what}" if self.where else self.what
        end = "" if located.endswith("?") else "."  # as behind "did you mean 'that'?"
        return f"{located}{end} {self.fix}" if self.fix else located


class RecipeError(MaloraError):
    """A recipe, a mix or an override is wrong."""


class DataError(MaloraError):
    """A dataset, a row or a column is wrong."""


class ModelError(MaloraError):
    """A base model or an adapter cannot be had."""


class RunError(MaloraError):
    """A run folder is missing, in the way or damaged."""


class DivergedError(RunError):
    """Training ended in a loss, a gradient or a weight that is NaN or infinite."""


class StoppedError(MaloraError):
    """A run was told to stop, and did so at the end of a step.

    Args:
        what: How far it came and how it goes on.
        signal: Number of the signal.
    """

    kind = "interrupted"

    def __init__(self, what: str, signal: int) -> None:
        self.exit_code = 128 + signal  # as shells count
        super().__init__(what)
