"""A run folder from a stranger is safe to open: nothing in it is run, followed, unpickled or expanded without end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from malora_cli.cli import main
from malora_cli.errors import RecipeError
from malora_cli.recipe.files import read_document
from malora_cli.yaml_lines import MOST_BYTES, MOST_LEVELS, Origin, read_yaml
from report_runs import bare_run


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert (caught.value.code, line[:7]) == (2, "error: ")
    return line


# ---------------------------------------------------------------- a recipe that expands without end

_LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])
_MERGED = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40))])
_CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [[[[*a{n - 1}]]]]" for n in range(1, 99))])
_BOMBS = {
    "aliases": (_LAUGHS, "more than 500,000 values, aliases written out"),
    "merges": (_MERGED, "more than 500,000 values, aliases written out"),
    "chain": (_CHAIN, "nested more than 64 deep"),
    "brackets": ("a: " + "[" * 100, "nested more than 64 deep"),
    "indents": ("\n".join(" " * n + "a:" for n in range(300)), "nested more than 64 deep"),
    "bytes": ("a: " + "x" * MOST_BYTES, "more than 5,000,000 bytes"),
}


@pytest.mark.parametrize("bomb", _BOMBS)
def test_a_recipe_that_is_too_much_is_one_line(bomb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, reason = _BOMBS[bomb]
    record = bare_run(tmp_path)
    record.write_recipe(text)
    for command in ("report", "eval", "merge-export"):
        assert reason in refused([command, str(record.path)], capsys)
    with pytest.raises(RecipeError, match=reason):
        read_document(record.recipe_path, "recipe")
    assert not record.report_path.exists()


def test_what_is_deep_and_large_but_within_the_limits_is_read() -> None:
    def read(text: str) -> object:
        return read_yaml(text, lambda line: Origin(str(line), Path())).data

    assert read("[" * MOST_LEVELS + "]" * MOST_LEVELS)
    assert read("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: *a}}") == {"a": [1, 2], "b": [[1, 2]] * 2, "c": {"d": [1, 2]}}


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: *a}", "- x", "a: !!python/name:os.system x", "a: 1\na: 2"])
def test_a_damaged_recipe_of_a_run_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = bare_run(tmp_path)
    record.write_recipe(text)
    assert "recipe.yaml: the recipe cannot be read (" in refused(["report", str(record.path)], capsys)
