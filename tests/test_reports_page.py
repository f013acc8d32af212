"""The report page as a whole: escaped, self-contained, the same each time, and shown by a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from malora_cli.reports import write_report
from malora_cli.reports.section import SECTIONS
from malora_cli.results import EvalEvent, RunRecord, TrainEvent
from report_runs import Page, answer, conflict, evaluation, full_run, geometry, keep_answers, loss, manifest, page


@pytest.fixture
def full(tmp_path: Path) -> RunRecord:
    return full_run(tmp_path)


def test_everything_from_users_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&$x$ {{ 7 * 7 }}"
    record = RunRecord(tmp_path / "runs" / "<b>bold")
    load = {evil: {evil: [0.5, 0.5]}}
    record.write_manifest(
        manifest(
            {evil: evil, f"{evil}2": evil},
            base_model=evil,
            method=evil,
            versions={evil: evil},
            seeds={evil: 1},
            created=evil,
            remedies={evil: evil},
        )
    )
    record.write_recipe(
        yaml.safe_dump(
            {
                evil: {evil: evil},
                "mix": {"description": evil},
                "train": {"steps": evil},
                "remedies": {"patience": {"evaluations": evil}},
            }
        )
    )
    record.metrics.append(EvalEvent(step=0, seconds=1.0, tasks={evil: loss(1.0)}, expert_load=load))
    record.metrics.append(EvalEvent(step=1, seconds=1.0, tasks={evil: loss(1.5)}, expert_load=load))
    record.metrics.append(
        TrainEvent(
            step=1,
            seconds=1.0,
            tasks={evil: loss(1.0)},
            learning_rate=1.0,
            tokens_per_second=1.0,
            balance_loss=1.0,
            expert_share={evil: [0.5, 0.5]},
        )
    )
    result = evaluation({evil: evil}, created=evil, gate_entropy={evil: {evil: 0.5}})
    result.save(record.eval_dir / "a.json")
    told = {"reference": evil, "base": evil, "adapter": evil, "adapter_outcome": evil}
    keep_answers(record, [answer(evil, 1, 0, 1, prompt=evil, **told)])
    geometry(target=evil).save(record.experts_path)
    record.metrics.append(conflict({evil: evil, f"{evil}2": evil}))
    shown = page(record)
    assert set(shown.texts) == set(SECTIONS)
    assert {"script", "b>bold"}.isdisjoint(tag for tag, _ in shown.tags)
    assert "alert(1)" in shown.source
    assert "<script" not in shown.source
    assert "<b>bold" not in shown.source
    # Every element and attribute is one of ours: a broken-out quote would have made new ones.
    assert not [name for _, attrs in shown.tags for name in attrs if not re.fullmatch(r"[a-zA-Z\-:]+\d?", name)]
    for section in (
        *("headline", "scores", "answers", "losses", "seesaw"),
        *("experts", "balance", "mixture", "settings", "reproduce"),
    ):
        assert evil.split()[0] in shown.text(section), section
        assert "{{ 7 * 7 }}" in shown.text(section), section


def test_the_same_run_gives_the_same_bytes(full: RunRecord, tmp_path: Path) -> None:
    first = write_report(full).read_bytes()
    assert write_report(full).read_bytes() == first
    moved = shutil.copytree(full.path, tmp_path / "elsewhere" / "runs" / "trial")
    code = "import sys; from pathlib import Path; from malora_cli.reports import write_report as w;"
    code += "from malora_cli.results import RunRecord as R; w(R(Path(sys.argv[1])));"
    code += "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(moved)], check=True)
    assert (moved / "report" / "index.html").read_bytes() == first
    assert str(tmp_path).encode() not in first, "a page that is passed on names no folder of its maker"


def test_the_page_loads_nothing(full: RunRecord) -> None:
    shown = page(full)
    assert {"script", "link", "img", "iframe", "object", "embed", "base", "form"}.isdisjoint(t for t, _ in shown.tags)
    ids = [attrs["id"] for _, attrs in shown.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), "ids are unique"
    assert ids
    for tag, attrs in shown.tags:
        for name, value in attrs.items():
            if name.endswith(("src", "href", "srcset", "action", "data", "poster")):
                assert value, (tag, name)
                assert value.startswith("#"), (tag, name, value)
                assert value[1:] in ids, (tag, name, value)
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target[1:] in ids, (tag, name, value)
    assert [tag for tag, _ in shown.tags].count("style") == 1, "no style sheet of a chart gets at the page"
    assert "url(" not in shown.style
    assert "@import" not in shown.style
    assert not re.search(r"https?:|//\w+\.\w", shown.source)


def test_charts_take_their_colours_from_the_page(full: RunRecord) -> None:
    shown = page(full)
    drawn = "".join(re.findall(r"<svg.*?</svg>", shown.source, flags=re.DOTALL))
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", shown.source))
    assert "--task-0" in used
    assert not re.search(r"#[0-9a-f]{6}\b", drawn), "a fixed colour cannot follow light and dark"
    given = set(re.findall(r"(--[a-z0-9-]+):", shown.source))
    assert used <= given


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network, whatever the page asks for
)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_shows_the_page(full: RunRecord, tmp_path: Path) -> None:
    path, picture = write_report(full).resolve(), tmp_path / "page.png"
    command = [str(CHROMIUM), *CHROMIUM_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,4000"]
    run = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    seen = Page(re.sub(r"^<!DOCTYPE html>", "", run.stdout))
    assert seen.text("headline") == page(full).text("headline")
    assert sum(tag == "svg" for tag, _ in seen.tags) == 6  # three losses, the balance loss, a layer group twice
    subprocess.run([*command, f"--screenshot={picture}", path.as_uri()], capture_output=True, timeout=60, check=True)

    from matplotlib.image import imread  # a PNG of height x width x RGB(A), 0 to 1

    colours = {tuple(pixel) for pixel in (imread(picture)[::4, ::4, :3] * 255).astype(int).reshape(-1, 3)}
    # The solid bars of the mixture table have the tasks' colours of the light page.
    assert {(0x08, 0x6D, 0xFF), (0xEE, 0x6F, 0x1A), (0x23, 0xA5, 0x66)} <= colours
    assert len(colours) > 50, "text and lines are drawn"
