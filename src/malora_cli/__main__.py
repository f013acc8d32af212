"""``python -m malora_cli``, and where the ``malora`` command begins.

The first thing it does is to let Ctrl-C end the process without a word: what is imported before `cli.main` can catch it
takes a quarter of a second. The last is to spare the interpreter the search for garbage in half a million objects of
PyTorch and the like, which takes seconds and frees what the system is about to take back anyway; all that is registered
to run at the end still runs.
"""

from __future__ import annotations

import gc
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit."""
    patient = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else whoever started us has it ignored
    if patient:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from malora_cli.cli import main as run

    if patient:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
