"""``malora methods``: every method with its settings, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from json_output import assert_documented
from malora_cli.adapters.methods import METHODS
from malora_cli.cli import main


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["methods", *arguments])
    return int(str(caught.value.code))


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert status() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    assert "malora     " in lines[list(METHODS).index("malora") + 1]


def test_the_settings_of_one_are_what_a_recipe_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("malora") == 0
    out = capsys.readouterr().out
    assert "`y = W0 x + (alpha / r) sum_t g_t(x) B_t P_t S_A x`" in out
    assert "arXiv 2410.22782" in out
    assert status("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert_documented("malora methods", told)
    for described in told["methods"]:
        defaults = {key: setting["default"] for key, setting in described["settings"].items()}
        made = METHODS[described["name"]](**defaults)
        assert made.model_dump(mode="json", exclude={"name"}) == defaults
        assert described["about"]


def test_a_method_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("malorra") == 2
    assert capsys.readouterr().err == "error: NAME: unknown method 'malorra'; did you mean 'malora'?\n"


def test_no_torch_is_loaded() -> None:
    code = "import sys; from malora_cli.cli import main\n"
    code += "try: main(['methods'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
