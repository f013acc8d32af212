"""Every format by the row of its own docstring, and the rows that each refuses in words that help."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from conftest import CHATML
from malora_cli.data.chat.template import APART
from malora_cli.data.columns import RowReader
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import Example, RowError, Turn
from malora_cli.errors import DataError

MESSAGES = [
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "Twice that?"},
    {"role": "assistant", "content": "10"},
]
SHAREGPT = [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]
YES_OR_NO = {"prompt": "{{ table }}: {{ question | trim }}", "completion": "{{ 'yes' if answer else 'no' }}"}
ICE = "What melts ice?\n\nA. cold\nB. heat\n\nAnswer with the letter alone."


def read(name: str, row: dict[str, Any], columns: dict[str, Any] | None = None) -> Example:
    return RowReader(name, FORMATS[name], columns or {}, list(row), "rows.jsonl")(row)


def turns(example: Example) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in example.turns]


@pytest.mark.parametrize(
    ("name", "row", "columns", "expected"),
    [
        (
            "prompt-completion",
            {"prompt": "What is 2 + 3?", "completion": "5"},
            {},
            [("user", "What is 2 + 3?"), ("assistant", "5")],
        ),
        (
            "prompt-completion",
            {"prompt": "Is ice warm?", "completion": False},
            {},
            [("user", "Is ice warm?"), ("assistant", "false")],
        ),
        (
            "prompt-completion",
            {"q": 2, "a": 0.5, "s": "Be brief."},
            {"prompt": "q", "completion": "a", "system": "s"},
            [("system", "Be brief."), ("user", "2"), ("assistant", "0.5")],
        ),
        (
            "alpaca",
            {"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"},
            {},
            [("user", "Translate to French.\n\nGood morning"), ("assistant", "Bonjour")],
        ),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Yo"}, {}, [("user", "Hi"), ("assistant", "Yo")]),
        ("alpaca", {"instruction": "Hi", "input": None, "output": "Yo"}, {}, [("user", "Hi"), ("assistant", "Yo")]),
        ("alpaca", {"instruction": "Hi", "output": "Yo"}, {}, [("user", "Hi"), ("assistant", "Yo")]),
        ("messages", {"messages": MESSAGES}, {}, [(m["role"], m["content"]) for m in MESSAGES]),
        (
            "messages",
            {"m": {"role": ["user", "assistant"], "content": ["a", "b"]}},
            {"messages": "m"},
            [("user", "a"), ("assistant", "b")],
        ),
        ("sharegpt", {"conversations": SHAREGPT}, {}, [("user", "2 + 3?"), ("assistant", "5")]),
        (
            "sharegpt",
            {"conversations": SHAREGPT, "system": "Add."},
            {},
            [("system", "Add."), ("user", "2 + 3?"), ("assistant", "5")],
        ),
        (
            "multiple-choice",
            {"question": "What melts ice?", "choices": ["cold", "heat"], "answer": 1},
            {},
            [("user", ICE), ("assistant", "B")],
        ),
        (
            "multiple-choice",
            {"q": "What melts ice?", "one": "cold", "two": "heat", "answer": "heat", "context": "Physics."},
            {"question": "q", "choices": ["one", "two"]},
            [("user", f"Physics.\n\n{ICE}"), ("assistant", "B")],
        ),
        (
            "multiple-choice",
            {"question": "What melts ice?", "choices": {"text": ["cold", "heat"], "label": ["1", "2"]}, "key": "2"},
            {"answer": "key"},
            [("user", ICE), ("assistant", "B")],
        ),
        (
            "multiple-choice",
            {"question": "What melts ice?", "c": {"text": ["cold", "heat"]}, "answer": "A"},
            {"choices": "c.text"},
            [("user", ICE), ("assistant", "A")],
        ),
        (
            "cloze",
            {"question": "What melts ice?", "choices": ["cold", "heat"], "answer": 1, "context": "Physics."},
            {},
            [("user", "Physics.\n\nWhat melts ice?"), ("assistant", "heat")],
        ),
        (
            "template",
            {"table": "a | b", "question": "Is a first? ", "answer": True},
            YES_OR_NO,
            [("user", "a | b: Is a first?"), ("assistant", "yes")],
        ),
    ],
)
def test_what_a_row_becomes(
    name: str, row: dict[str, Any], columns: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert turns(read(name, row, columns)) == expected


def test_every_format_is_read_above() -> None:
    marks = test_what_a_row_becomes.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(FORMATS)


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("alpaca", {"instruction": "x", "output": " "}, "an empty completion"),
        ("messages", {"messages": []}, "a conversation of no message"),
        ("messages", {"messages": "hello"}, "a conversation that is one text"),
        ("messages", {"messages": ["hello"]}, "ends with the user"),
        ("messages", {"messages": None}, "no 'messages'"),
        ("messages", {"messages": MESSAGES[:3]}, "a conversation that ends with the user"),
        (
            "messages",
            {"messages": [{"role": "robot", "content": "x"}]},
            "a message of the unknown role 'robot' (known",
        ),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "a message without text as 'content'"),
        ("messages", {"messages": [{"content": "x"}]}, "a message without text as 'role'"),
        (
            "messages",
            {"messages": [*MESSAGES, {"role": "system", "content": "x"}, *MESSAGES]},
            "a system message that is not the first",
        ),
        (
            "messages",
            {"messages": [MESSAGES[0], {"role": "assistant", "content": ""}, *MESSAGES]},
            "an empty completion",
        ),
        ("sharegpt", {"conversations": [{"from": "human", "value": "x"}]}, "a conversation that ends with the user"),
        ("multiple-choice", {"question": "x", "choices": ["a"], "answer": 0}, "no list of 2 to 26 choices"),
        ("multiple-choice", {"question": "x", "choices": "ab", "answer": 0}, "choices that are one text; part it"),
        ("multiple-choice", {"question": "x", "choices": ["a", ""], "answer": 0}, "a choice without text"),
        (
            "multiple-choice",
            {"question": "x", "choices": ["a", "b"], "answer": 3},
            "the answer '3', which is not one of",
        ),
        (
            "multiple-choice",
            {"question": "x", "choices": ["a", "b"], "answer": -1},
            "the answer '-1', which is not one",
        ),
        (
            "multiple-choice",
            {"question": "x", "choices": {"text": ["a", "b"], "label": ["A"]}, "answer": 0},
            "not as many labels as choices",
        ),
    ],
)
def test_a_row_that_is_no_example(name: str, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(RowError) as caught:
        read(name, row)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_a_cell_does_not_suit() -> None:
    columns = {"prompt": "{{ a / b }}", "completion": "{{ a.x.y }}"}
    with pytest.raises(RowError, match="a cell that the template of 'prompt' cannot take"):
        read("template", {"a": 1, "b": 0}, columns)
    with pytest.raises(RowError, match="a cell that the template of 'completion' cannot take"):
        read("template", {"a": 1, "b": 2}, columns)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ qestion }}", "names the column 'qestion', which is not there; did you mean 'question'?"),
        ("{{ question", "the template of 'prompt' is not valid Jinja (line 1: "),
        ("{{ " + "(" * 9999 + "question" + ")" * 9999 + " }}", "the template of 'prompt' is nested too deeply"),
        ("{{ 'no column' }}", "the template of 'prompt' names no column, so it is the same for every row"),
        ("no column", "column not found: 'no column' for 'prompt'; known: answer, question"),
        (("question", "answer"), "a list of columns as 'prompt', where one text is wanted"),
    ],
)
def test_a_wrong_template_is_found_before_the_first_row(template: Any, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        RowReader(
            "template",
            FORMATS["template"],
            {"prompt": template, "completion": "{{ answer }}"},
            ["question", "answer"],
            "rows.jsonl",
        )
    assert str(caught.value).startswith("rows.jsonl: ")
    assert expected in str(caught.value)


def test_a_template_runs_nothing() -> None:
    """What a shared mix could do with a plain Jinja environment: reach Python's own classes."""
    for reach in ("{{ a.__class__.__mro__ }}", "{{ '{0.__class__}'.format(a) }}", "{{ a.strip.__func__ }}"):
        for role in ("prompt", "completion"):
            with pytest.raises(RowError, match=f"the template of '{role}' cannot take"):
                read("template", {"a": "x"}, {"prompt": "a", "completion": "a", role: reach})
        with pytest.raises(RowError, match="the template of 'choices' cannot take"):
            read("multiple-choice", {"a": "x"}, {"question": "a", "answer": "a", "choices": reach})


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ a }}",
        "{% set r = range(9999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}{{ a }}",
        "{% for i in a %}{% for j in range(99999) | list %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}{{ a }}",
        "{{ 9 ** (9 ** 9) }}{{ a }}",
        "{{ a * 10 ** 9 }}",
        "{{ a if 9 ** (9 ** 9) else range(999999999) | list }}",
    ],
)
def test_a_template_comes_to_an_end(template: str) -> None:
    for role in ("prompt", "completion"):
        why = rf"a cell that the template of '{role}' cannot take \((it takes more|what \*|maximum)"
        with pytest.raises(RowError, match=why):
            read("template", {"a": "xxx"}, {"prompt": "a", "completion": "a", role: template})


def test_what_templates_count_is_left_as_it_is() -> None:
    loop = "{% for k, v in a.items() %}{{ loop.index }}/{{ loop.length }} {{ k * 2 }}={{ v ** 3 }};{% endfor %}"
    loop += "{% for i in range(9) if i is odd %}{{ i }}{% if loop.last %}.{% endif %}{% else %}none{% endfor %}"
    example = read("template", {"a": {"x": 2, "y": 3}}, {"prompt": loop, "completion": "{{ a.x }}"})
    assert example.prompt == "1/2 xx=8;2/2 yy=27;1357."


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": "qq"}, "column not found: 'qq' for 'prompt'; did you mean 'q'?"),
        ({"prompt": "q.text", "completion": "zzz.z"}, "column not found: 'zzz.z' for 'completion'; known: a, q"),
        (
            {"promt": "q"},
            "format 'prompt-completion' has no role 'promt'. Its roles: prompt, completion, system, cluster.",
        ),
    ],
)
def test_a_wrong_column_has_a_neighbour(columns: dict[str, str], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        RowReader("prompt-completion", FORMATS["prompt-completion"], columns, ["q", "a"], "rows.jsonl")
    assert expected in str(caught.value)


def test_every_answer_is_supervised_and_nothing_else(tiny_model: Any) -> None:
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    example = read("messages", {"messages": MESSAGES})
    encoded = encoder.encode(example, "Add.")
    answers = [encoder.tokenizer.decode(encoded.input_ids[first:last]) for first, last in encoded.spans]
    assert answers == ["5<|im_end|>", "10<|im_end|>"]
    whole = [{"role": "system", "content": "Add."}, *MESSAGES]
    text = encoder.tokenizer.apply_chat_template(whole, tokenize=False)
    assert encoder.tokenizer.decode(encoded.input_ids) == text.rstrip()
    assert encoded.label_tokens == len("5") + len("10") + 2


def test_turns_in_plain_text(tiny_model: Any) -> None:
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    encoder.tokenizer.chat_template = None
    encoded = encoder.encode(read("messages", {"messages": MESSAGES}))
    assert encoder.tokenizer.decode(encoded.input_ids) == "2 + 3?\n5<|im_end|>\nTwice that?\n10<|im_end|>"
    assert len(encoded.spans) == 2


def test_under_a_template_that_changes_earlier_turns_each_answer_is_a_row(tiny_model: Any) -> None:
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    encoder.tokenizer.chat_template = "{{ messages | length }} turns " + CHATML
    assert encoder.encode(Example.single("a", "b")).label_tokens == 2
    rendered = encoder.rendered(read("messages", {"messages": MESSAGES}))
    asked = [[segment.text for segment in row if not segment.supervised] for row in rendered.rows]
    # What is asked for an answer, not what is written once it is there.
    assert [row[0].partition("<")[0] for row in asked] == ["1 turns ", "3 turns "]
    assert [row[-1].text for row in rendered.rows] == ["5<|im_end|>", "10<|im_end|>"]
    assert rendered.remarks == (APART,)


def test_a_rows_own_system_prompt_comes_first(tiny_model: Any) -> None:
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    own = Example((Turn("system", "own"), Turn("user", "a"), Turn("assistant", "b")))
    assert encoder.tokenizer.decode(encoder.encode(own, "task's").input_ids).startswith(
        "<|im_start|>system\nown<|im_end|>"
    )
