"""From files of data to a mix and a recipe: what can be told from rows, and the reasons."""

from malora_cli.init.infer import Guess, guess_task
from malora_cli.init.write import write_project

__all__ = ["Guess", "guess_task", "write_project"]
