"""``python -m malora_cli``, and where the ``malora`` command begins.

The first thing it does is to let Ctrl-C end the process without a word: what is imported before `cli.main` can catch it
takes a quarter of a second.
"""

from __future__ import annotations

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
    run()


if __name__ == "__main__":
    main()
