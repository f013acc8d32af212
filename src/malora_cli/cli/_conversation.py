"""Questions and answers on a terminal, or one of each in a pipe."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext, suppress
from signal import SIGINT
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from malora_cli.cli._terminal import error_console, plain_table, result_console, write
from malora_cli.errors import DataError, MaloraError

if TYPE_CHECKING:
    from malora_cli.chat.speaker import Experts, Reply, Speaker
    from malora_cli.cli._chat import Opened
    from malora_cli.train.stopping import StopRequest

_COMMAND = re.compile(r"/[a-z]+")
_KEYS = "/new starts a new conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"
_CUT = {
    "length": "cut off at {} tokens; --max-new-tokens allows more",
    "room": "cut off after {} tokens, where the context of the model is full",
}


def piped_question() -> str | None:
    """All of standard input; None where it is a terminal, on which questions are typed.

    Raises:
        DataError: There is no question in it.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        return None
    question = "" if sys.stdin is None else _read(None)
    if not question or not question.strip():
        fix = 'Pipe one in, as in `echo "What is 2 + 3?" | malora chat RUN`, or type it on a terminal.'
        raise DataError("it has no question", where="standard input", fix=fix)
    return question.rstrip("\r\n")


def _read(prompt: str | None) -> str | None:
    """A line that is typed behind a prompt, or all of standard input; None at its end.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        text = sys.stdin.read() if prompt is None else _typed(prompt)
        text.encode()  # in some locales what cannot be decoded is let through
        return text
    except EOFError:
        return None
    except UnicodeError as error:
        raise DataError("not valid UTF-8", where="standard input") from error


def _typed(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)  # which edits lines, where `readline` is imported
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def hold(opened: Opened, question: str | None) -> None:
    """Answer one question, or all that are typed.

    Raises:
        MaloraError: The one question cannot be answered.
    """
    conversation = _Conversation(opened)
    if question is not None:
        conversation.ask(question, patient=False)
    else:
        conversation.go_on()


class _Shown:
    """Prints an answer as it comes; its reasoning on a terminal only."""

    def __init__(self, label: str) -> None:
        self.read = True
        self._next, self._console = label, result_console()

    def thinks(self, text: str) -> None:
        """More reasoning."""
        if self._console.is_terminal:
            self._console.print(Text(self._next + text, style="dim"), end="", soft_wrap=True)
            self._next = "\n"

    def says(self, text: str) -> None:
        """More of the answer."""
        self.read &= write(self._next + text)
        self._next = ""


class _Conversation:
    """What is asked and answered."""

    def __init__(self, opened: Opened) -> None:
        self._opened, self._number = opened, 0
        console = result_console()
        self._aside = console if console.is_terminal else error_console()  # in a pipe the answer stands alone

    def go_on(self) -> None:
        """Answer what is typed until there is no more."""
        with suppress(ImportError):  # as on Windows
            import readline  # noqa: F401 - lines can be edited and called back
        self._tell(f"{self._opened.title}. {_KEYS}")
        while self._goes_on():
            pass

    def _goes_on(self) -> bool:
        """Do what the next line asks for; False where that is to leave."""
        try:
            line = _read("> ")
            if line is None or line.strip() == "/exit":
                return False
            self._obey(line)
        except MaloraError as error:
            error_console().print(Text.assemble(("error:", "bold red"), " ", str(error)))
        except (KeyboardInterrupt, SystemExit):
            self._tell("")
            raise
        return True

    def _obey(self, line: str) -> None:
        if line.strip() == "/new":
            for speaker in self._opened.speakers:
                speaker.forget()
            self._tell("new conversation")
        elif _COMMAND.fullmatch(line.strip()):
            self._tell(f"{line.strip()} is not a command: {_KEYS}")
        elif line.strip():
            self.ask(line, patient=True)

    def ask(self, question: str, *, patient: bool) -> None:
        """Print the answers to a question.

        Args:
            question: What is asked.
            patient: Whether Ctrl-C stops an answer and not the program.
        """
        from malora_cli.train.stopping import StopRequest

        with StopRequest() if patient else nullcontext() as stop:
            for speaker in self._opened.speakers:
                self._answer(speaker, question, stop)
                if stop is not None and stop.signal is not None:
                    break
        self._number += 1
        if stop is not None and stop.signal not in (None, SIGINT):
            raise SystemExit(128 + stop.signal)

    def _answer(self, speaker: Speaker, question: str, stop: StopRequest | None) -> None:
        label = f"{speaker.name}: " if len(self._opened.speakers) > 1 else ""
        shown = _Shown(label)
        reply = speaker.ask(
            question,
            self._opened.decoding,
            shown,
            number=self._number,
            ended=lambda: (stop is not None and stop.signal is not None) or not shown.read,
        )
        shown.says("\n")
        if (note := _note(reply)) is not None:
            self._tell(label + note)
        if reply.experts is not None and reply.experts.load:  # not of an answer without a token
            self._tell("experts in %: gate entropy, then shares of the assignments, busiest first")
            self._aside.print_table(_table(reply.experts))

    def _tell(self, line: str) -> None:
        self._aside.print(Text(line, style="dim"), soft_wrap=True)


def _note(reply: Reply) -> str | None:
    """What is to be known of an answer that has not come to its end."""
    if reply.interrupted:
        return "stopped"
    cut = _CUT.get(reply.generated.stop)
    return None if cut is None else cut.format(reply.generated.tokens)


def _table(experts: Experts) -> Table:
    """Load and entropy of every layer group, in percent."""
    most = max((len(load) for load in experts.load.values()), default=0)
    table = plain_table(("layers",), ("entropy", *map(str, range(1, most + 1))))
    for group, load in experts.load.items():
        shares = [f"{100 * share:.1f}" for share in load]
        table.add_row(group, f"{100 * experts.entropy[group]:.1f}", *shares)
    return table
