"""The page of a comparison: what it says is what the record says, escaped, in one file that loads nothing."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from compared import GAPS, METHODS, RATES, SEEDS, TASKS, comparison, effect
from malora_cli.errors import RunError
from malora_cli.reports import write_comparison
from malora_cli.reports.comparison.page import SECTIONS, render_comparison
from malora_cli.reports.comparison.sections.methods import leaders, tally
from malora_cli.reports.comparison.sections.tuning import ceiling, curves, ticks
from malora_cli.reports.comparison.view import ComparisonView, Scale
from malora_cli.reports.html import rate
from malora_cli.results.comparison import Comparison, Trial, Tuned, Verdict
from report_runs import Page

ORDER = ["headline", "methods", "tuning", "tasks", "seesaw", "tradeoffs", "seeds", "failures", "repeat"]
#: Sections on what lies in the folders of runs: test_comparison_runs.py.
OF_RUNS = {"conflict", "routing", "rows"}
CSV = "data:text/csv;charset=utf-8;base64,"
EVIL = "<script>alert(1)</script>\"'&$x$ {{ 7 * 7 }}"
LONG = "long" * 50


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render_comparison(comparison()))


def page(**changes: object) -> Page:
    return Page(render_comparison(comparison(**changes)))  # type: ignore[arg-type]


def changed(method: str, **changes: object) -> Comparison:
    """The comparison with one method's result changed."""
    it = comparison(trials=[])
    methods = [found.model_copy(update=changes) if found.method == method else found for found in it.methods]
    return it.model_copy(update={"methods": methods})


# ---------------------------------------------------------------- as a whole


def test_it_lies_in_the_comparison_and_is_the_same_each_time(tmp_path: Path, full: Page) -> None:
    it = comparison(methods=METHODS[:3], trials=[])
    path = write_comparison(tmp_path / "a.compare", it)
    assert path == tmp_path / "a.compare" / "report" / "index.html"
    assert list(path.parent.iterdir()) == [path], "no scratch file is left"
    first = path.read_bytes()
    assert write_comparison(tmp_path / "a.compare", it).read_bytes() == first
    assert len(full.source.encode()) < 1_500_000


def test_a_page_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file")
    with pytest.raises(RunError, match="the report cannot be written"):
        write_comparison(tmp_path, comparison(methods=METHODS[:2], trials=[]))


def test_sections_stand_in_their_order_and_sentences_first(full: Page) -> None:
    assert [name for name in sorted(SECTIONS, key=lambda name: SECTIONS[name].order) if name not in OF_RUNS] == ORDER
    assert set(SECTIONS) == {*ORDER, *OF_RUNS}
    assert list(full.texts) == ORDER
    it = comparison()
    assert full.text("headline") == " ".join(["Result", *it.sentences, *it.notes])
    links = [attrs["href"] for tag, attrs in full.tags if tag == "a" and "download" not in attrs]
    assert links == [f"#{name}" for name in ORDER]


def test_the_page_loads_nothing(full: Page) -> None:
    assert {"script", "link", "img", "iframe", "object", "embed", "base", "form"}.isdisjoint(t for t, _ in full.tags)
    ids = [attrs["id"] for _, attrs in full.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), "ids are unique"
    for tag, attrs in full.tags:
        for name, value in attrs.items():
            if name.endswith(("src", "href", "srcset", "action", "data", "poster")) and "download" not in attrs:
                assert (value or "")[:1] == "#", (tag, name, value)
                assert (value or "")[1:] in ids, (tag, name, value)
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target[1:] in ids, (tag, name, value)
    assert "url(" not in full.style
    assert "@import" not in full.style
    assert not re.search(r"https?:|//\w+\.\w", full.source.replace(str(download(full)["href"]), ""))
    (policy,) = [attrs["content"] for _, attrs in full.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_charts_take_their_colours_from_the_page_and_hold_no_names(full: Page) -> None:
    drawn = re.findall(r"<svg.*?</svg>", full.source, flags=re.DOTALL)
    assert len(drawn) == len(METHODS) + 3
    assert not re.search(r"#[0-9a-f]{6}\b", "".join(drawn)), "a fixed colour cannot follow light and dark"
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", full.source.split("</style>")[1]))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", full.source))
    inside = "".join(re.sub(r"<svg [^>]*>", "", svg, count=1) for svg in drawn)
    assert not [name for name in (*METHODS, *TASKS) if f">{name}<" in inside]


def test_every_name_is_escaped_and_long_ones_are_whole() -> None:
    tasks = {EVIL: EVIL, LONG: LONG, "short": "d"}
    methods = ("plain", EVIL, LONG)
    said = {
        "trials": [
            Trial(method=EVIL, learning_rate=1e-4, run=EVIL, loss=None, why=EVIL),
            Trial(method=EVIL, learning_rate=1e-3, run=EVIL, loss=2.0),
        ],
        "failures": [{"method": EVIL, "seed": 3, "run": EVIL, "why": EVIL}],
        **{"name": EVIL, "created": EVIL, "plan_sha256": EVIL, "notes": [EVIL], "sentences": [EVIL]},
    }
    shown = page(tasks=tasks, methods=methods, **said)
    assert list(shown.texts) == ORDER
    assert "<script" not in shown.source
    assert not [name for _, attrs in shown.tags for name in attrs if not re.fullmatch(r"[a-zA-Z\-:]+\d?", name)]
    for section in ORDER:
        assert EVIL.split()[0] in shown.text(section), section
        assert "{{ 7 * 7 }}" in shown.text(section), section
    assert LONG in shown.text("tasks")
    again = page(methods=("plain", EVIL), baseline=EVIL)
    assert "<script" not in again.source


def test_every_chart_has_its_data_as_a_table(full: Page) -> None:
    for section in ("tuning", "tasks", "seesaw", "tradeoffs", "seeds"):
        assert f'<section id="{section}">' in full.source
        inside = full.source.split(f'<section id="{section}">')[1].split("</section>")[0]
        assert '<details class="data">' in inside, section
        assert inside.rindex("<details") > inside.rindex("</figure>"), section


# ---------------------------------------------------------------- sections


def test_numbers_of_table_1_are_those_of_the_record(full: Page) -> None:
    it = comparison()
    for found in it.methods:
        flag = " added after the plan" if found.added else " 2 of 3 seeds" if len(found.runs) < 3 else ""
        row = full.row("methods", found.method + flag)
        assert row[0] == f"{found.parameters:,}"
        assert row[1].split()[0] == rate(found.tuned.learning_rate)
        assert found.value is not None
        assert row[2] == f"{found.value:.4f} ±0.0210"
        if found.effect is not None:
            value = f"{'+' if found.effect.value > 0 else '−'}{abs(found.effect.value):.4f}"
            assert row[4:6] == [
                f"{value} ±0.0170",
                {
                    Verdict.BETTER: "+ better",
                    Verdict.WORSE: "− worse",
                    Verdict.EQUAL: "= equal",
                    Verdict.OPEN: "? cannot be told apart",
                }[found.effect.verdict],
            ]
            assert row[7] == " / ".join(map(str, found.tally()))
        else:
            assert row[3:6] == ["", "–", "baseline" if found.method == it.baseline else "not compared"]
        score = found.mean("scores")
        assert score is not None
        assert row[6] == f"{100 * score:.1f}%"
        assert row[8] == f"{found.interquartile:.4f} ±0.0170"
        assert row[9] == ("–" if found.rank is None else f"{found.rank:.2f}")
        assert row[10] == f"{found.seconds_per_step:.3g}"
    assert full.row("methods", "beta")[1].endswith("not bracketed")


def test_a_method_that_lacks_a_seed_is_never_the_best() -> None:
    it = changed("epsilon", value=0.5)
    assert [method.name for method, _ in leaders(ComparisonView(it))] == ["alpha"]
    assert "A method that lacks seeds is not compared" in Page(render_comparison(it)).text("methods")


def test_the_page_names_no_folder_of_its_maker() -> None:
    trials = [Trial(method="alpha", learning_rate=1e-4, run="/home/somebody/runs/try", loss=1.0)]
    failures = [{"method": "beta", "seed": 1, "run": "C:\\Users\\somebody\\runs\\one", "why": "w"}]
    shown = page(trials=trials, failures=failures)
    assert "somebody" not in shown.source
    assert shown.row("failures", "beta")[2] == "one"


def test_the_best_is_bold_only_with_a_verdict(full: Page) -> None:
    assert full.source.count('<span class="strong">1.3955</span>') == 1
    assert "Bold is the best" in full.text("methods")
    undecided = Page(render_comparison(changed("alpha", effect=effect(-0.05, Verdict.OPEN, SEEDS))))
    assert '<span class="strong">' not in undecided.source
    assert "No method is bold" in undecided.text("methods")
    value = comparison().of("alpha").value
    assert value is not None
    tie = changed("beta", value=value + 1e-6)
    assert [method.name for method, _ in leaders(ComparisonView(tie))] == ["alpha", "beta"]
    tied = Page(render_comparison(tie))
    assert tied.row("methods", "beta")[2].startswith("1.3955t")
    assert "ties with the best" in tied.text("methods")


def test_a_method_that_was_not_tuned_or_has_no_runs_says_so() -> None:
    shown = Page(render_comparison(changed("beta", tuned=Tuned(learning_rate=2e-4, bracketed=None))))
    assert shown.row("methods", "beta")[1] == "2e-4 not tuned"
    lost = {"runs": [], "value": None, "low": None, "high": None, "effect": None, "tasks": {}, "rank": None}
    lost |= {"interquartile": None, "interquartile_half": None}
    empty = Page(render_comparison(changed("zeta", **lost)))
    assert empty.row("methods", "zeta 0 of 3 seeds")[2:] == ["–", "", "–", "not compared", *"–––––"]


def test_rate_curves_mark_edges_and_what_diverged(full: Page) -> None:
    text = full.text("tuning")
    assert "one seed (100), which is not reported" in text
    assert "× at the top: the run diverged or failed" in text
    assert "beta 2e-3 → 1.3000 not bracketed" in re.sub(r"[^\w .\-→]", "", text)
    rows = [[" ".join(cell.split()) for cell in row] for row in full.rows["tuning"]]
    assert len(rows) == len(METHODS) * len(RATES) + 1
    assert [row[1:4] for row in rows if "zeta" in row[0]][-1] == [
        "2e-3",
        "diverged",
        "the loss was no number at step 12",
    ]
    assert sum(row[3] == "taken" for row in rows) == len(METHODS)
    figure = next(part for part in full.source.split("<figure>") if "Validation loss of beta" in part)
    assert ">edge</text>" in figure


def test_losses_far_above_do_not_flatten_the_others() -> None:
    far = [Trial(method="alpha", learning_rate=r, run="r", loss=x) for r, x in ((1e-4, 1.0), (1e-3, 1.1), (1e-2, 90.0))]
    view = ComparisonView(comparison(trials=far))
    assert ceiling(curves(view)) == pytest.approx(1.25)
    assert "Losses that leave a chart at the top" in page(trials=far).text("tuning")
    lost = [one.model_copy(update={"loss": None}) for one in far]
    assert ceiling(curves(ComparisonView(comparison(trials=lost)))) is None
    assert page(trials=lost).text("tuning").count("failed") == 4
    assert [text for _, text in ticks([10.0**-n for n in range(9, 0, -1)])] == ["1e-9", "1e-7", "1e-5", "1e-3", "1e-1"]
    assert [text for _, text in ticks([1e-4, 1.1e-4, 1.11e-3, 1e-2])] == ["1e-4", "1.1e-3", "1e-2"]


def test_tasks_show_means_over_seeds_and_effects_with_both_intervals(full: Page) -> None:
    it = comparison()
    rows = [[" ".join(cell.split()) for cell in row] for row in full.rows["tasks"]]
    for task in TASKS:
        losses, scores = [row for row in rows if row[0] == task and len(row) == len(METHODS) + 2]
        assert losses[1:] == [str(it.rows[task]), *(f"{found.mean('losses', task):.4f}" for found in it.methods)]
        assert scores[2:] == [f"{100 * (found.mean('scores', task) or 0):.1f}%" for found in it.methods]
    (row,) = [row for row in rows if row[0] == "task_b" and row[1].endswith("zeta")]
    assert row[2:] == [
        *("+0.2500", "+0.2330 to +0.2670", "+0.2390 to +0.2620", "+0.2330 to +0.2670", "0.031", "− worse"),
    ]
    assert "left of the line is better" in full.text("tasks")


def test_a_plot_places_differences_and_those_beyond_its_end() -> None:
    effects = [effect(value, Verdict.OPEN, SEEDS) for value in (-0.05, 0.01, 0.03, 9.0)]
    scale = Scale.over(effects, 0.015)
    assert scale.reach == pytest.approx(0.3)
    span = scale.span(effects[0])
    assert (span.at, span.low, span.high) == pytest.approx((0.5 - 0.05 / 0.6, 0.5 - 0.067 / 0.6, 0.5 - 0.033 / 0.6))
    assert scale.span(effects[-1]).sign("●") == "●›"
    assert scale.span(effects[-1]).at == 1
    assert Scale.over([], 0.0).reach == 1.0


def test_scores_as_endpoint_are_percent_and_more_is_better() -> None:
    shown = page(endpoint="score", margin=0.01, methods=METHODS[:3], trials=[])
    assert shown.row("methods", "beta")[2:6] == ["41.5% ±2.1", "●", "−2.0 ±1.7", "? cannot be told apart"]
    assert "right of the line is better" in shown.text("tasks")
    assert "Score on test rows" in shown.text("tasks")
    assert "upper left is better" in shown.text("tradeoffs")
    assert "±1.0 points" in shown.text("repeat")


def test_every_seed_is_shown_and_one_that_failed_is_a_dash(full: Page) -> None:
    it = comparison()
    for found in it.methods:
        by_seed = {run.seed: sum(run.losses.values()) / len(TASKS) for run in found.runs}
        told = [f"{by_seed[seed]:.4f}" if seed in by_seed else "–" for seed in SEEDS]
        assert full.row("seeds", found.method)[:-1] == told
    assert full.row("seeds", "epsilon")[2] == "–"
    assert full.row("failures", "epsilon") == ["3", "out of memory at step 7", "../runs/epsilon-3"]


def test_one_seed_allows_no_verdict_and_what_is_not_there_has_no_section() -> None:
    shown = page(seeds=(1,), trials=[], failures=[], notes=[])
    assert list(shown.texts) == ["headline", "methods", "tasks", "seesaw", "tradeoffs", "repeat"]
    assert shown.row("methods", "alpha")[5] == "no verdict"
    assert shown.row("methods", "alpha")[7] == "–"
    assert "One seed allows no verdict." in shown.text("methods")
    assert '<span class="strong">' not in shown.source
    assert tally(comparison(seeds=(1,)).of("alpha")) == "–"


def test_a_comparison_of_which_nothing_came_still_has_a_page() -> None:
    failures = [{"method": "alpha", "seed": 1, "run": "r", "why": "no memory"}]
    trials = [Trial(method="alpha", learning_rate=1e-4, run="r", loss=None)]
    shown = page(methods=("plain",), seeds=(1,), failures=failures, trials=trials, margin=0.0)
    assert list(shown.texts) == ["headline", "methods", "tuning", "tasks", "seesaw", "failures", "repeat"]
    assert "No margin was set" in shown.text("repeat")
    nothing = comparison(failures=failures, trials=trials).model_copy(
        update={"methods": [], "sentences": [], "notes": []}
    )
    assert list(Page(render_comparison(nothing)).texts) == ["tuning", "failures", "repeat"]


def test_marks_differ_where_colours_do_not() -> None:
    it = comparison(methods=("plain", *(f"method {number}" for number in range(40))))
    methods = ComparisonView(it).methods.values()
    assert len({(method.slot, method.marker) for method in methods}) == 41
    assert len({method.glyph for method in list(methods)[:8]}) == 8
    assert set(GAPS) < set(METHODS)


def download(shown: Page) -> dict[str, str | None]:
    (found,) = [attrs for tag, attrs in shown.tags if tag == "a" and "download" in attrs]
    return found


def test_the_whole_csv_can_be_downloaded(full: Page) -> None:
    link = download(full)
    assert link["download"] == "comparison.csv"
    assert str(link["href"]).startswith(CSV)
    assert base64.b64decode(str(link["href"]).removeprefix(CSV)).decode() == comparison().csv()
    text = full.text("repeat")
    for word in ("1,200", "1, 2, 3", "100", "0a" * 32, "±0.0150", "task_h domain 1 307", "33 min", "5 min 15 s"):
        assert word in text, word


def test_halves_of_characters_are_written_as_on_disk(tmp_path: Path) -> None:
    it = comparison(methods=METHODS[:2], trials=[], failures=[]).model_copy(update={"baseline": "\ud800"})
    it.save(tmp_path)
    path = write_comparison(tmp_path, it)
    href = str(download(Page(path.read_text(encoding="utf-8")))["href"])
    assert base64.b64decode(href.removeprefix(CSV)) == (tmp_path / "comparison.csv").read_bytes()


# ---------------------------------------------------------------- the seesaw


def test_tasks_that_lose_by_being_trained_together_are_counted(full: Page) -> None:
    rows = {row[0]: row for row in full.rows["seesaw"]}
    for name, row in rows.items():
        it = next((it for it in comparison().methods if name.endswith(it.method)), None)
        if it is not None and it.delta_m is not None:
            assert row[-1] == f"{len(it.seesaw)} of {len(TASKS)}"
            assert row[-2].replace("−", "-").rstrip("%") in (f"{it.delta_m:+.1f}", "0.0")
            assert row[1].split()[0].replace("−", "-") == f"{it.alone['task_a'].value:+.3f}"
    assert sum(len(row[-1]) > 3 for row in rows.values()) > len(METHODS) - 2
    none = [it.model_copy(update={"alone": {}, "delta_m": None}) for it in comparison().methods]
    assert "seesaw" not in Page(render_comparison(comparison().model_copy(update={"methods": none}))).texts


def test_gains_over_single_tasks_are_drawn_in_nats_whatever_the_endpoint(full: Page) -> None:
    assert "left of the line, the mixture is better" in full.text("seesaw")
    inside = full.source.split('<section id="seesaw">')[1].split("</section>")[0]
    assert inside.count('<div class="forest">') == len(TASKS)
    rows = [[" ".join(cell.split()) for cell in row] for row in full.rows["seesaw"]]
    (row,) = [row for row in rows if row[0] == "task_b" and len(row) == 8 and row[1].endswith("zeta")]
    assert row[2:4] == ["+0.2100", "+0.1930 to +0.2270"]
    scored = page(endpoint="score", margin=0.01, methods=METHODS[:3], trials=[])
    rows = [[" ".join(cell.split()) for cell in row] for row in scored.rows["seesaw"]]
    (row,) = [row for row in rows if row[0] == "task_b" and len(row) == 8 and row[1].endswith("beta")]
    assert row[2] == "−0.0100"


def test_a_task_whose_run_alone_is_missing_is_not_drawn() -> None:
    methods = [
        it.model_copy(update={"alone": {name: found for name, found in it.alone.items() if name != "task_a"}})
        for it in comparison().methods
    ]
    shown = Page(render_comparison(comparison().model_copy(update={"methods": methods})))
    inside = shown.source.split('<section id="seesaw">')[1].split("</section>")[0]
    assert inside.count('<div class="forest">') == len(TASKS) - 1
