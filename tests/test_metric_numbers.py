"""The last number of an answer: what is equal, what is not, and what is no number."""

from __future__ import annotations

import time
from itertools import combinations

import pytest

from malora_cli.evals.metrics import METRICS
from malora_cli.evals.metrics._numbers import number_of

LAST = METRICS["last-number"]()

#: Ways to write one number. Those of different lines are different numbers.
SAME = [
    ["18", "The answer is: 18", "9 * 2 = 18\n#### 18", "18.", "18.0", "$18", "18 apples", "**18**", "$18$",
     "18%", "+18",
     "18?", "18!", "(18)", "1.8e1", "18/1", "36/2", "36 / 2", r"\boxed{18}", r"$\boxed{18}$ apples of 25", "１８", "١٨",
     r"\frac{36}{2}", "x = 18", "She has 25 - 7 = 18", "#### 18\n\nQuestion: Tom has 5 apples", "####18", "#### $18.00",
     "#### **18**", "### Step 1\n#### Step 2\n18", "#### 1. Add\n9 + 9 = 18", "18 cm^2", "18 cm²", "18 m2", "18 m s^-2",
     "18 m/s", "18 km/h", "18°", r"18^\circ", r"18\text{ cm}^2", r"18 \%", "18 $", "18€", "€ 18", "x_1 = 18",
     r"\boxed{18\text{ cm}^2}", "Rs.18", "Rs 18", "18-year-old", "18th", "18…", "№ 18", "18 e", "18em", "18 Mbit"],
    ["-18", "−18", "–18", "-18.0", "- 36/2 = -18", "x = - 18", "= −18", "-$18", "$-18", "(-18)", r"-\frac{36}{2}",
     r"\boxed{-18}", "#### -18", "-18 °C", "is: -18", "－18", "-18%"],
    ["0.5", ".5", "1/2", "0,5", "½", r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", "0.50", "5e-1", "5 × 10^-1", "5·10⁻¹",
     "2/4", "$.50", r"\boxed{\frac{1}{2}}", "1⁄2", "2^-1", "0.5 kg", "00.5", "1 / 2", "50/100"],
    ["-0.5", "-.5", "-1/2", "-½", r"-\frac{1}{2}", "−0,5"],
    ["1.5", "3/2", "1 1/2", "1½", "1 ½", r"1\frac{1}{2}", "1,5", "150/100", "1.50"],
    ["-1.5", "-1 1/2", "-1½", "-3/2"],
    ["2.5", "2 1/2", "2½"],
    ["3.5", "3,5", "3,50", "7/2"],
    ["3500", "3,500", "3,500.00", "3 500", "3 500", "3 500", "3'500", "3’500", "3_500", "3.500,00", "3.5e3", "3.5E+3",
     "3.5 × 10^3", "3.5 x 10^3", "3.5*10^3", r"3.5 \times 10^{3}", "3.5 thousand", "3.5k", "$3,500", "3{,}500",
     r"3\,500",
     "35 hundred", "3500,0", "(3,500)", "3千5百 is 3500"],
    ["0.35"], ["35"], ["3.05"],
    ["1000", "1e3", "10^3", "10³", "1,000", r"10^{3}", "1 thousand", "1k", "1千"],
    ["1000000", "1,000,000", "1.000.000", "10,00,000", "1 000 000", "1e6", "10^6", "1 million", "1M", "$1M", "100万"],
    ["1500000", "1.5 million", "1.5 millions", "1 1/2 million", "15,00,000", "1.500.000,0"],
    ["1.234", "1,2340", "1234/1000"],
    ["1234.5", "1,234 1/2", "(1,234.5)", "1,234.5", "1.234,5", "1 234,5", "1 234.5", "1234,5"],
    ["1024", "2^10", r"2^{10}"],
    ["0", "-0", "0.0", "0/5", "#### 0"],
    ["3-5", "3 to 5", "3～5", "3–5", "3 - 5", "3 – 5", "3−5", "pages 3-5"],
    ["1 hour 30 minutes"], ["2 hours 30 minutes"], ["5 ft 10 in"], ["6 ft 10 in"], ["3万5千"], ["2万5千"], ["5000"],
    ["5 : 1", "5:1"], ["3 : 1"], ["1"], ["{1, 5}", "(1, 5)", r"\{1, 5\}"], ["{2, 6}"], ["3⋅4", "3·4"],
    ["2-5"], ["3-6"], ["5-3"], ["5"], ["3"], ["2"], ["6"],
    ["10:30", "at 10:30."], ["10:30 am"], ["10:30 pm"], ["9:30"], ["30"], ["10"],
    ["9 am", "9am", "9 AM", "9 a.m."], ["9 pm"], ["9"],
    ["3:5"], ["2024-01-15"], ["2023-01-15"], ["15"], ["1/15/2024"], ["2/15/2024"], ["2024"],
    ["3 + 5"], ["2 + 5"], ["3 × 5"], ["2 × 5"], ["2x5"], ["3x5"], ["(3, 5)", "(3,5)", "( 3 , 5 )"], ["(2, 5)"],
    ["[3, 5]"],
    ["3,5,7"], ["1.2.3"], ["1.2.4"], ["4"], ["7"], ["±3"], ["50% - 20%"], ["20"],
    ["2 × 10^5", "200000"], ["3 × 10^5"], ["100000"], ["1e-5"], ["1e5 / 2", "50000"],
    ["1 3/2"], ["2 3/2"], ["1/0"], ["2/0"], ["5'10"], ["5'11"], ["1/2 million"],
    ["2 hundred", "200"], ["2 million"], ["2 billion"], ["2 thousand", "2000", "2k"],
    ["2,234 1/2"], ["-$2 1/2", "-2.5"],
]  # fmt: skip

#: No number, or none whose value could be told; equal to nothing, not even to itself.
NONE = [
    "", "none", "no number", "####", "#### none", "...", "-", r"\boxed{B}", r"\boxed{}", r"\boxed{12", "x^2", "√3",
    r"\sqrt{3}", "2√3",
    r"2^{\frac{1}{2}}", r"\frac{1}{x}", "1/(x + 1)", "log_2 8", "ln 2", "sin(30)", "3+4i", "2i", "2e", "0x1F",
    r"2\sqrt{2}", "2π", r"2\pi", "3 pi", "9^(1/2)", "2^3^2", "x/2", "y-5", "x + 5", "2x", "x_1",
    "5‰", "2^x",
    r"\frac{x}{2}",
    r"\frac{1}{\sqrt{2}}", "½^", "√(16)",
]  # fmt: skip


@pytest.mark.parametrize("ways", SAME, ids=lambda ways: ways[0])
def test_ways_to_write_one_number(ways: list[str]) -> None:
    missed = [way for way in ways if LAST.score(way, ways[0]) != 1.0 or LAST.score(ways[0], way) != 1.0]
    assert missed == []
    assert all(LAST.reads(way) for way in ways)


def test_no_two_numbers_are_taken_for_equal() -> None:
    numbers = [{number_of(way) for way in ways} for ways in SAME]
    assert [(one, other) for one, other in combinations(range(len(SAME)), 2) if numbers[one] & numbers[other]] == []


@pytest.mark.parametrize("text", NONE)
def test_what_has_no_value_equals_nothing(text: str) -> None:
    assert LAST.scores([text, text, "3"], [[text], ["3"], [text]]) == [0.0, 0.0, 0.0]
    assert not LAST.reads(text)


@pytest.mark.parametrize(
    "text", ["9" * 10_000, "1e999999999999", "9^999999999", "2^" + "9" * 5000, "1/" + "3" * 5000, "0^-1"]
)
def test_no_number_is_too_much(text: str) -> None:
    assert LAST.score(text, text) == 1.0
    assert LAST.score(text, "9") == 0.0


@pytest.mark.parametrize(
    "part", ["1 ", "(1,", "1 - ", "9^(", "1/", "100 ", "= - ", "{", r"\boxed{", r"\frac{", "#### ", "1.", "1'1"]
)
def test_long_texts_take_no_time(part: str) -> None:
    text = part * (20_000 // len(part))
    started = time.perf_counter()
    LAST.score(text, "1")
    assert time.perf_counter() - started < 2
