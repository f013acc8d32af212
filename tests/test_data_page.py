"""What docs/data.md shows is what is done: the examples of chat templates, and the check of public files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chat_families import source_of, tokenizer_of
from conftest import write_recipe
from malora_cli.cli import main
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example, Turn

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
ONE = (Turn("user", "2 + 3?"), Turn("assistant", "5"))
TWO = (*ONE, Turn("user", "Twice that?"), Turn("assistant", "10"))
REASONED = (Turn("user", "6 * 7?"), Turn("assistant", "<think>Six sevens.</think>42"))
ADD = {"type": "function", "function": {"name": "add", "arguments": '{"of": [2, 3]}'}}
CALLED = (ONE[0], Turn("assistant", "", {"tool_calls": [ADD]}), Turn("tool", "5"), Turn("assistant", "It is 5."))
#: The examples of the page in their order: template, turns, system prompt.
EXAMPLES: list[tuple[str, tuple[Turn, ...], str | None]] = [
    ("llama3", TWO, None),
    ("qwen3", TWO, None),
    ("qwen3", REASONED, None),
    ("deepseek_r1_distill", ONE, None),
    ("deepseek_r1_distill", REASONED, None),
    ("gptoss", ONE, None),
    ("gptoss", REASONED, None),
    ("glm4moe", TWO, None),
    ("gemma", ONE, "Be brief."),
    ("qwen2_5", CALLED, None),
]


def shown(name: str, turns: tuple[Turn, ...], system: str | None) -> str:
    """Rows as the page shows them, an empty line between two."""
    rows = Encoder(tokenizer_of(source_of(name))).rendered(Example(turns), system).rows
    texts = ["".join(f"»{part.text}«" if part.supervised else part.text for part in row) for row in rows]
    # The system prompt of gpt-oss is long, and says nothing here.
    return "\n\n".join(re.sub(r"(?s)^<\|start\|>system.*?<\|end\|>", "…", text) for text in texts) + "\n"


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_chat_templates_are_rendered(number: int) -> None:
    assert BLOCKS[-len(EXAMPLES) + number] == shown(*EXAMPLES[number])


def test_public_files_are_checked_as_the_page_says(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens depend on the tokenizer; rows and what is said of them do not."""
    recipe = write_recipe(tmp_path, tiny_model, Path("mix.yaml"))
    with pytest.raises(SystemExit) as caught:
        main(["check", str(recipe), "mix=examples/public_shapes", "--no-step"])
    printed = capsys.readouterr()
    assert caught.value.code == 0, printed.err
    [page] = [block for block in BLOCKS if block.startswith("Mixture: ")]
    table = r"^(\w+) +(\d+) +\d+ +[\d.]+% +([\d.]+%) +(\d+) +(\d+) +\d+ +\d+$"  # read, left out, validation, test
    assert re.findall(table, page, re.MULTILINE) == re.findall(table, printed.out, re.MULTILINE) != []
    notes = [line for line in page.splitlines() if "not used" in line or line.startswith("Rows held out")]
    assert len(notes) == 3
    assert all(line in printed.out for line in notes)
