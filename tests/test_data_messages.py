"""Conversations as people write them: keys and names of speakers, parts, tool calls, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from malora_cli.data.chat.template import ChatTemplate
from malora_cli.data.columns import RowReader
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import Example, RowError
from malora_cli.data.sources import load_rows
from malora_cli.data.tasks import load_tasks
from malora_cli.errors import DataError
from malora_cli.recipe import MixSettings, SourceSettings


def read(name: str, row: dict[str, Any], columns: dict[str, Any] | None = None, **speakers: str) -> Example:
    return RowReader(name, FORMATS[name], columns or {}, list(row), "rows.jsonl", speakers)(row)


def said(example: Example) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in example.turns]


ANSWERED = [("user", "2 + 3?"), ("assistant", "5")]


@pytest.mark.parametrize(
    ("speaker", "answerer"),
    [("human", "gpt"), ("Human", "ChatGPT"), ("user", "model"), ("USER", "bot"), ("prompter", "assistant")],
)
@pytest.mark.parametrize(("role", "text"), [("role", "content"), ("from", "value"), ("speaker", "text")])
def test_usual_names_and_keys_are_known(speaker: str, answerer: str, role: str, text: str) -> None:
    rows = [{role: speaker, text: "2 + 3?"}, {role: answerer, text: "5"}]
    assert said(read("messages", {"messages": rows})) == ANSWERED
    assert said(read("sharegpt", {"conversations": rows})) == ANSWERED


def test_others_are_given_by_the_mix() -> None:
    rows = [{"who": "customer", "said": "2 + 3?"}, {"who": "agent", "said": "5"}]
    keys = {"messages": "dialog", "role": "who", "content": "said"}
    assert said(read("messages", {"dialog": rows}, keys, customer="user", agent="assistant")) == ANSWERED
    assert said(read("messages", {"dialog": rows}, keys, Customer="user", AGENT="assistant")) == ANSWERED
    with pytest.raises(RowError, match=r"the unknown role 'customer' .*others by the task's speakers"):
        read("messages", {"dialog": rows}, keys)
    with pytest.raises(RowError, match="a message without 'who'"):
        read("messages", {"dialog": [{"role": "user", "said": "x"}]}, keys)
    with pytest.raises(DataError, match="format 'alpaca' has no messages that somebody speaks"):
        read("alpaca", {"instruction": "x", "output": "y"}, agent="assistant")


def test_parts_of_text_are_one_text_and_others_are_refused() -> None:
    parts = [{"type": "text", "text": "2 +"}, {"type": "text", "text": " 3?"}]
    rows = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "5"}]}]
    assert said(read("messages", {"messages": rows})) == ANSWERED
    picture = {"type": "image_url", "image_url": {"url": "cat.png"}}
    with pytest.raises(RowError, match="a message with a part of the kind 'image_url' in 'content', and only text"):
        read("messages", {"messages": [{"role": "user", "content": [*parts, picture]}, rows[1]]})


HUMAN = {"Human:": "user", "Assistant:": "assistant"}


@pytest.mark.parametrize(
    ("messages", "speakers", "expected"),
    [
        (["2 + 3?", "5"], {}, ANSWERED),
        ('["2 + 3?", "5"]', {}, ANSWERED),
        ("\n\nHuman: 2 + 3?\n\nAssistant: 5", HUMAN, ANSWERED),
        ("Human: a\nHuman nature: b\n\n Assistant:\n5", HUMAN, [("user", "a\nHuman nature: b"), ("assistant", "5")]),
        ("U: 2 + 3?\nU2: x\nA: 5", {"U": "tool", "U:": "user", "A:": "assistant", "U2:": "tool"}, None),
        ("[INST] 2 + 3? \n[/INST] 5", {"[INST]": "user", "[/INST]": "assistant"}, ANSWERED),
    ],
)
def test_conversations_without_names_and_in_one_text(messages: Any, speakers: Any, expected: Any) -> None:
    expected = expected or [("user", "2 + 3?"), ("tool", "x"), ("assistant", "5")]
    assert said(read("messages", {"messages": messages}, **speakers)) == expected
    assert said(read("sharegpt", {"conversations": messages}, **speakers)) == expected


def test_an_answer_to_a_conversation_in_one_text() -> None:
    row = {"messages": "Human: 2 + 3?\n\nAssistant:", "chosen": "5"}
    assert said(read("messages", row, {"answer": "chosen"}, **HUMAN)) == ANSWERED
    with pytest.raises(RowError, match="ends with the user, so its end is not answered"):
        read("messages", row, **HUMAN)


@pytest.mark.parametrize(
    ("messages", "speakers", "expected"),
    [
        ("Human: 2 + 3?", {}, 'one text; say who speaks, as in `speakers: {"Human:": user, "Assistant:": assistant}`'),
        ("Well. Human: 2?\nAssistant: 5", HUMAN, "a text before the first of its speakers, 'Well. Human: 2?'"),
        (" ", HUMAN, "a conversation of no message"),
        (["2 + 3?"], {}, "ends with the user"),
        (
            [{"role": "USER", "content": "?"}, {"role": "SYSTEM", "content": "!"}],
            {},
            "if that is who answers, say so by",
        ),
        ("[bad json", HUMAN, "a text before the first"),
        ('[{"role": ', {}, "not valid JSON"),
    ],
)
def test_a_conversation_in_one_text_that_cannot_be_parted(messages: Any, speakers: Any, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        read("messages", {"messages": messages}, **speakers)
    assert expected in str(caught.value)


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"of": [2, 3]}'}}
TOOLS = [{"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL["function"]]},
        {"role": "assistant", "function_call": CALL["function"]},
        {"role": "function_call", "content": json.dumps(CALL["function"])},
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [{"type": "function", "function": TOOLS[0]}]])
def test_tool_calls_reach_the_template(message: dict[str, Any], tools: Any) -> None:
    rows = [
        {"role": "user", "content": "2 + 3?"},
        message,
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is 5."},
    ]
    example = read("messages", {"messages": rows, "tools": tools})
    assert [turn.role for turn in example.turns] == ["user", "assistant", "tool", "assistant"]
    assert example.turns[1].extra["tool_calls"][0]["function"]["name"] == "add"
    assert example.tools[0]["function"]["description"] == "Adds."


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "function_call", "content": "add(2, 3)"}, "a tool call that is not valid JSON"),
        ({"role": "assistant", "tool_calls": [{"arguments": {}}]}, "a tool call that does not name a function"),
        ({"role": "assistant", "content": None, "tool_calls": "[]"}, "a message without text as 'content'"),
        ({"role": "assistant", "content": None}, "a message without text as 'content'"),
        ({"role": "assistant", "content": {"text": "x"}}, "a message without text as 'content'"),
        (
            {"role": "assistant", "content": "x", "weight": 0.5},
            "a message of the weight 0.5: an answer is trained (1) or not (0)",
        ),
    ],
)
def test_a_message_that_says_nothing_is_told(message: dict[str, Any], expected: str) -> None:
    with pytest.raises(RowError) as caught:
        read("messages", {"messages": [{"role": "user", "content": "?"}, message]})
    assert str(caught.value) == expected


def test_keys_that_hold_nothing_are_none(tmp_path: Path) -> None:
    """As tables have them, whose mappings have the keys of all others in their column."""
    rows = []
    for name, argument in (("add", "of"), ("find", "text")):
        call = {"function": {"name": name, "arguments": {argument: 1}}}
        tool = {"name": name, "parameters": {"type": "object", "properties": {argument: {"type": "string"}}}}
        asked = {"role": "user", "content": "?"} if name == "add" else {"from": "human", "value": "?"}
        rows.append({"messages": [asked, {"role": "assistant", "tool_calls": [call]}], "tools": [tool]})
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("parquet", "jsonl"):
        loaded = load_rows(SourceSettings(path=str(tmp_path / f"rows.{kind}")), split="train").dataset
        for row, argument in zip(loaded, ("of", "text"), strict=True):
            example = read("messages", dict(row))
            assert example.turns[0].text == "?"
            assert example.turns[1].extra["tool_calls"][0]["function"]["arguments"] == {argument: 1}
            assert list(example.tools[0]["function"]["parameters"]["properties"]) == [argument]
    written = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": '{"of": null}'}]}
    example = read("messages", {"messages": [{"role": "user", "content": "?"}, written]})
    assert example.turns[1].extra["tool_calls"][0]["function"]["arguments"] == '{"of": null}'


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss": False}])
def test_an_answer_may_be_left_out_of_the_loss(mark: dict[str, Any], tiny_model: Path) -> None:
    rows = [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "wrong", **mark},
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": "right", "weight": 1},
    ]
    example = read("messages", {"messages": rows})
    assert [turn.supervised for turn in example.turns if turn.role == "assistant"] == [False, True]
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    encoded = encoder.encode(example)
    assert [encoder.tokenizer.decode(encoded.input_ids[a:b]) for a, b in encoded.spans] == ["right<|im_end|>"]


def test_a_developer_is_the_system_where_a_template_knows_none(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [{"role": "developer", "content": "Add."}, *({"role": r, "content": t} for r, t in ANSWERED)]
    example = read("messages", {"messages": rows})
    shown = ChatTemplate(tokenizer).rendered(example).rows[0][0].text  # ChatML shows whatever role there is
    assert shown.startswith("<|im_start|>system\nAdd.")
    tokenizer.chat_template = "{# developer, user and assistant #}" + tokenizer.chat_template
    assert ChatTemplate(tokenizer).rendered(example).rows[0][0].text.startswith("<|im_start|>developer\nAdd.")
    left_out = "{% for m in messages if m.role != 'developer' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = left_out
    assert ChatTemplate(tokenizer).rendered(example).rows[0][0].text.startswith("system: Add.\nuser: 2 + 3?\n")


def test_special_tokens_in_a_text_are_told_and_an_end_is_taken_once(tiny_model: Path) -> None:
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))
    example = Example.single("2 + 3?", "5<|im_end|>")
    assert encoder.rendered(example).rows[0][1].text == "5<|im_end|>"
    assert encoder.remarks(example) == ["special tokens of the model in a text, such as <|im_end|>"]
    assert encoder.remarks(Example.single("2 < 3?", "<b>5</b>")) == []


def test_a_task_says_who_speaks_and_which_answers_are_trained(tmp_path: Path, tiny_model: Path) -> None:
    said = [("client", "a?"), ("agent", "A"), ("client", "b?"), ("agent", "B")]
    row = json.dumps({"messages": [{"role": role, "content": text} for role, text in said]})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n" * 4, encoding="utf-8")
    speakers = {"client": "user", "agent": "assistant"}
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model))

    def trained(**settings: Any) -> int:
        source = {"train": {"path": str(tmp_path / "rows.jsonl")}, "metric": {"name": "exact-match"}}
        task = {"domain": "d", "format": "messages", **source, **settings}
        [loaded] = load_tasks(MixSettings.model_validate({"tasks": {"t": task}}), encoder, max_length=512)
        return loaded.train.label_tokens // len(loaded.train)

    with pytest.raises(DataError, match="unknown role 'client'"):
        trained()
    assert trained(speakers=speakers) == len("A") + len("B") + 2  # and an end each
    assert trained(speakers=speakers, supervise="last") == len("B") + 1
    with pytest.raises(DataError, match=r"format 'alpaca' has one answer a row. Leave supervise out."):
        trained(format="alpaca", supervise="last")


def test_messages_where_a_text_is_wanted_are_told_with_the_format_for_them() -> None:
    said = [{"role": "user", "content": "a?"}], [{"role": "assistant", "content": "A"}]
    with pytest.raises(RowError) as caught:
        read("prompt-completion", {"prompt": said[0], "completion": said[1]})
    assert str(caught.value) == (
        "messages as 'prompt', where a text is wanted; take format messages, as in `columns: {messages: prompt}`"
    )
    beside = {"messages": "prompt", "answer": "completion"}
    example = read("messages", {"prompt": said[0], "completion": said[1]}, beside)
    assert [turn.text for turn in example.turns] == ["a?", "A"]
