"""How much a command says beside its result: phases on standard error, more under ``-v``, nothing under ``-q``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum

from malora_cli.cli._terminal import SafeConsole, error_console, result_console, say, say_for_now
from malora_cli.errors import MaloraError

#: All rooms log what they begin, and need not know who listens: at INFO, at DEBUG where something else tells of it.
_ROOMS = logging.getLogger("malora_cli")


class Volume(IntEnum):
    """What is said."""

    QUIET = 0  # results and errors
    NORMAL = 1  # phases, progress and warnings of ours
    VERBOSE = 2  # how long each phase takes, and warnings of libraries


class _Phases(logging.Handler):
    """Tells what has begun: on a terminal until something takes its place, elsewhere as a line that ends in dots.

    With it nobody waits for seconds without a word of what for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.volume = Volume.NORMAL
        #: Shows phases in the place of the lines, as a progress bar does.
        self.instead: Callable[[str], None] | None = None
        self._begun: tuple[str, float] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        phase = record.getMessage()
        if self._begun is not None and self._begun[0] == phase:  # rooms need not know what was said before them
            return
        self.end()
        if self.volume is Volume.QUIET or os.environ.get("RANK", "0") != "0":
            return
        self._begun = (phase, time.perf_counter())
        if record.levelno < logging.INFO and self.volume is not Volume.VERBOSE:
            return
        with suppress(MaloraError):  # nothing is ended by what cannot be told of it
            if self.instead is not None:
                self.instead(phase)
            elif self.volume is Volume.NORMAL and error_console().is_terminal:
                say_for_now(phase)
            else:
                say(f"{phase} ...", err=True)

    def end(self) -> None:
        """The phase is over."""
        if self._begun is not None and self.volume is Volume.VERBOSE:
            phase, since = self._begun
            with suppress(MaloraError):
                say(f"{phase}: {time.perf_counter() - since:.1f} s", err=True)
        self._begun = None


_PHASES = _Phases()


def speak(volume: Volume) -> None:
    """Let a command that begins say so much."""
    _PHASES.volume, _PHASES.instead = volume, None
    _ROOMS.setLevel(logging.DEBUG)
    _ROOMS.propagate = False
    if _PHASES not in _ROOMS.handlers:
        _ROOMS.addHandler(_PHASES)


def volume() -> Volume:
    """How much is said."""
    return _PHASES.volume


def again_so() -> list[str]:
    """The options by which another process says as much."""
    return {Volume.QUIET: ["--quiet"], Volume.VERBOSE: ["--verbose"]}.get(_PHASES.volume, [])


def begin(phase: str) -> None:
    """Say what is going on from now on; the dots are added where it takes any."""
    _ROOMS.info("%s", phase)


def end_phase() -> None:
    """Say, where that is asked for, how long the last phase took."""
    _PHASES.end()


@contextmanager
def phases_shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Within the block phases are shown by what redraws the terminal itself."""
    _PHASES.instead = show
    try:
        yield
    finally:
        _PHASES.instead = None


def aside(line: str) -> None:
    """Print a line on standard error that is no result and no error."""
    if _PHASES.volume is not Volume.QUIET:
        say(line, err=True)


def progress_console(*, full: bool = True, err: bool = False) -> SafeConsole:
    """Where progress is shown: as `result_console`, or standard error, and nowhere under ``--quiet``."""
    if _PHASES.volume is Volume.QUIET:
        return SafeConsole(quiet=True, force_terminal=False)
    if _PHASES.volume is Volume.VERBOSE:  # nothing is redrawn between lines
        return SafeConsole(stderr=err, soft_wrap=True, force_terminal=False)
    return error_console() if err else result_console(full=full)
