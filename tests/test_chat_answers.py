"""A model that says what it was trained to say is right: for every template, whatever is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_families import NAMES, source_of, tokenizer_of
from malora_cli.data.chat.messages import BESIDE
from malora_cli.data.chat.template import APART, ChatTemplate
from malora_cli.data.columns import RowReader
from malora_cli.data.encode_rows import Encoding
from malora_cli.data.encoding import Encoded, Encoder
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import Example, RowError, Turn
from malora_cli.data.formats._conversation import conversation
from malora_cli.data.sources import load_rows
from malora_cli.recipe import SourceSettings

OLDER = {
    "no-header": "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role != 'assistant' else "
    "' ' + m.content + ' ' + eos_token }}{% endfor %}",
    "no-prompt": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "no-end": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "no-space": "{% for m in messages %}{{ '' if loop.first else '\n' }}{{ m.role | upper }}: {{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\nASSISTANT:' }}{% endif %}",
    "end-of-text-marks": "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/{{ m.role }}]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "always-asks": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}",
    "calls-alone": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


def says(text: str, **extra: Any) -> Turn:
    return Turn("assistant", text, extra)


def thinks(thought: str, text: str, **extra: Any) -> Turn:
    return says(text, **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), thought), **extra)


def calls(*numbers: int) -> dict[str, Any]:
    function = {"name": "sum", "arguments": '{"of": [2, 3]}'}
    return {"tool_calls": [{"type": "function", "id": f"call0000{n}", "function": function} for n in numbers]}


ASKED, AGAIN = Turn("user", "what is it?"), Turn("user", "and then?")
RESULT = Turn("tool", "5", {"name": "sum", "tool_call_id": "call00001"})
#: END is the mark that ends an answer.
SAID = {
    "words": [ASKED, says("it is five")],
    "white space around": [ASKED, says("  it is five \n")],
    "lines": [ASKED, says("one\n\ntwo\n")],
    "twice": [ASKED, says("one"), AGAIN, says("two\n")],
    "the question": [Turn("user", "five"), says("five"), Turn("user", "five"), says("five")],
    "an end": [ASKED, says("it is fiveEND")],
    "an end and a line break": [ASKED, says("it is fiveEND\n")],
    "an end in the middle": [Turn("user", "what is END?"), says("use END to end")],
    "the end of text": [ASKED, says("it is five<eos>")],
    "a special token": [ASKED, says("use <pad> to pad")],
    "a tag in prose": [ASKED, says("the tag </think> closes it")],
    "another tag": [ASKED, says("the tag <think> opens it")],
    "tags": [ASKED, says("<think>\nhm\n</think>\n\nit is five")],
    "tags and prose": [ASKED, says("<think>\nhm\n</think>\n\nuse </think> to close")],
    "no reasoning in tags": [ASKED, says("<think>\n\n</think>\n\nit is five")],
    "no opening": [ASKED, says("hm\n</think>\n\nit is five")],
    "no closing": [ASKED, says("<think>\nhm")],
    "reasoning": [ASKED, thinks("hm so", "it is five")],
    "reasoning as the answer": [ASKED, thinks("five", "five")],
    "reasoning at first": [ASKED, thinks("hm so", "one"), AGAIN, says("two")],
    "reasoning at last": [ASKED, says("one"), AGAIN, thinks("hm so", "two")],
    "a call": [ASKED, says("", **calls(1))],
    "a call beside words": [ASKED, says("let me see", **calls(1))],
    "a call behind reasoning": [ASKED, thinks("a sum", "", **calls(1))],
    "calls at once": [ASKED, says("", **calls(1, 2))],
    "a call and its result": [ASKED, says("", **calls(1)), RESULT, says("it is five")],
    "calls one by one": [ASKED, says("", **calls(1)), RESULT, says("", **calls(1)), RESULT, says("it is five")],
}


def answers(encoder: Encoder, encoded: list[Encoded]) -> Iterator[str]:
    """What the model answers that says what it was trained to say, at each place."""
    for row in encoded:
        for start, end in row.spans:
            said = row.input_ids[start:end]
            stop = next((at for at, token in enumerate(said) if token in encoder.stop_ids), None)
            assert stop is not None or any(text in encoder.tokenizer.decode(said) for text in encoder.stop_texts)
            yield encoder.answer(row.input_ids[:start], said[:stop])


@pytest.mark.parametrize("name", [*OLDER, *NAMES])
def test_what_was_trained_is_the_right_answer_and_ends(name: str) -> None:
    encoder = Encoder(tokenizer_of(OLDER.get(name) or source_of(name)))
    assert encoder.template is not None
    refused = []
    for kind, turns in SAID.items():
        marked = [replace(turn, text=turn.text.replace("END", encoder.template.traits.end.strip())) for turn in turns]
        example = Example(tuple(marked))
        try:
            rendered = encoder.rendered(example)
        except RowError as error:
            refused.append((kind, str(error)))
            continue
        *_, last = answers(encoder, encoder.tokenise(rendered.rows))
        [reference] = encoder.references(example, rendered)
        assert (kind, last.strip()) == (kind, reference.strip())
    assert all("leaves out" in reason for _, reason in refused)
    assert not [kind for kind, _ in refused if "call" not in kind and "reasoning" not in kind]  # words never are


@pytest.mark.parametrize("name", [*OLDER, *NAMES])
def test_one_rendering_tells_what_two_do(name: str) -> None:
    quick, slow = (ChatTemplate(tokenizer_of(OLDER.get(name) or source_of(name))) for _ in range(2))
    vars(slow)["_lead"] = None
    system = Turn("system", "be brief")
    for said in ("it is five", " it is\nfive\n", quick.traits.end, "the tag </think> closes it"):
        for turns in ((ASKED, says(said)), (system, ASKED, says(said)), (Turn("user", said), says(said))):
            assert quick.rendered(Example(turns)) == slow.rendered(Example(turns))


def test_models_without_a_template_say_the_same() -> None:
    encoder = Encoder(tokenizer_of(""))
    for kind, turns in SAID.items():
        said = [replace(turn, text=turn.text.replace("END", "<eos>")) for turn in turns]
        example = Example(tuple(said))
        if any(turn.extra for turn in turns):
            with pytest.raises(RowError, match="the model has no chat template that could show"):
                encoder.rendered(example)
            continue
        rendered = encoder.rendered(example)
        assert "<eos><eos>" not in rendered.rows[0][-1].text
        *_, last = answers(encoder, encoder.tokenise(rendered.rows))
        assert (kind, [last]) == (kind, encoder.references(example, rendered))


def test_ends_of_tool_calls_stop_generation() -> None:
    for name, end in (("gptoss", "<|call|>"), ("glm4moe", "<|observation|>"), ("gemma4", "<|tool_response>")):
        encoder = Encoder(tokenizer_of(source_of(name)))
        assert encoder.template is not None
        assert end in encoder.template.traits.stops
        assert not encoder.template.traits.end.endswith(end)


def test_the_name_of_a_channel_is_no_part_of_an_answer() -> None:
    encoder = Encoder(tokenizer_of(source_of("gptoss")))
    [[context, _]] = encoder.rendered(Example((ASKED, thinks("hm so", "five")))).rows  # asked with room for reasoning
    prompt, said = (encoder.tokenizer.encode(text) for text in (context.text, "<|channel|>final<|message|>five , or 5"))
    assert encoder.answer(prompt, said) == "five , or 5"


def test_reasoning_that_stands_elsewhere_too_is_not_taken_for_shown() -> None:
    encoder = Encoder(tokenizer_of(source_of("llama3")))
    for turns in ((ASKED, thinks("five", "five")), (Turn("user", "five"), thinks("five", "5"))):
        with pytest.raises(RowError, match="reasoning, which the model's chat template leaves out"):
            encoder.rendered(Example(turns))


def test_the_header_is_context_before_reasoning_too() -> None:
    encoder = Encoder(tokenizer_of(OLDER["no-prompt"]))
    [[context, trained]] = encoder.rendered(Example((ASKED, says("<think>\nhm\n</think>\n\nfive")))).rows
    assert context.text.endswith("<|im_start|>assistant\n")
    assert trained.text == "<think>\nhm\n</think>\n\nfive<|im_end|>"


def test_calls_and_words_that_a_template_leaves_out_are_told() -> None:
    encoder = Encoder(tokenizer_of(OLDER["calls-alone"]))
    assert encoder.rendered(Example((ASKED, says("let me see", **calls(1))))).remarks == (BESIDE,)
    assert encoder.rendered(Example((ASKED, says("", **calls(1))))).remarks == ()
    with pytest.raises(RowError, match="several tool calls in one message, of which the model's chat template leaves"):
        encoder.rendered(Example((ASKED, says("", **calls(1, 2)))))


@pytest.mark.parametrize(("weights", "right"), [([1, 0], "one"), ([0, 1], "two"), ([None, None], "two"), ([0, 0], "")])
def test_the_last_answer_that_is_trained_is_scored(weights: list[int | None], right: str) -> None:
    messages = [
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "one", "weight": weights[0]},
        {"role": "user", "content": "and then?"},
        {"role": "assistant", "content": "two", "weight": weights[1]},
    ]
    example = conversation({}, messages)
    encoder = Encoder(tokenizer_of(OLDER["always-asks"]))
    if not right:
        with pytest.raises(RowError, match="no answer that is to be trained"):
            encoder.rendered(example)
        return
    rendered = encoder.rendered(example, last=True)
    assert encoder.references(example, rendered) == [right]
    assert list(answers(encoder, encoder.tokenise(rendered.rows))) == [right]


def test_a_row_of_nothing_but_reasoning_cannot_be_scored(tmp_path: Path) -> None:
    encoder = Encoder(tokenizer_of(source_of("qwen3")))
    said = ["<think>\nhm\n</think>\n\nfive", "<think>\nhm, how many are"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "what is it?", "completion": text}) + "\n" for text in said))
    loaded = load_rows(SourceSettings(path=str(rows)), split="test")
    reader = RowReader("prompt-completion", FORMATS["prompt-completion"], {}, loaded.dataset.column_names, "rows")
    split = Encoding(reader, encoder, None, 512, "drop", "drop", once=True).split(loaded)
    [left_out] = split.left_out
    assert (len(split), left_out.rows, left_out.samples) == (1, 1, [2])
    assert left_out.reason == "an answer of nothing but reasoning or special tokens, so it cannot be scored"
    assert len(Encoding(reader, encoder, None, 512, "drop", "drop").split(loaded)) == 2  # it may be trained


def test_rows_of_the_source_are_counted_where_each_answer_is_a_row(tmp_path: Path) -> None:
    encoder = Encoder(tokenizer_of(source_of("qwen3")))
    turns = [{"role": role, "content": "it is five"} for _ in range(6) for role in ("user", "assistant")]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": turns[:2]}) + "\n" + json.dumps({"messages": turns}) + "\n")
    loaded = load_rows(SourceSettings(path=str(rows)), split="train")
    reader = RowReader("messages", FORMATS["messages"], {}, loaded.dataset.column_names, "rows")
    longest = Encoding(reader, encoder, None, 512, "drop", "error").split(loaded).longest
    dropped = Encoding(reader, encoder, None, longest // 2, "drop", "error").split(loaded)
    assert [(note.rows, note.samples) for note in dropped.left_out] == [(1, [2])]
    assert 2 < len(dropped) < 7
    assert [note.reason for note in dropped.remarks] == [APART]
    scored = Encoding(reader, encoder, None, 512, "drop", "error", once=True).split(loaded)
    assert (len(scored), scored.remarks) == (2, ())
    shortened = Encoding(reader, encoder, None, longest // 2, "truncate_left", "error").split(loaded)
    assert (shortened.cut, len(shortened)) == (1, 7)
