"""Chat templates of real models: nothing that is text is refused, and what is supervised is what their marks say."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from chat_families import NAMES, marked, source_of, tokenizer_of
from malora_cli.data.batch import Packer
from malora_cli.data.chat.rendering import content
from malora_cli.data.chat.template import APART, ChatTemplate
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example, RowError, Turn
from malora_cli.evals.predict import predict

HEADER = "the header of a turn is context: who serves the model writes it"
BLOCK = "a block of reasoning that is empty is context: the template writes it, and the model has none to learn"
CHANNEL = "so is the name of the channel: an answer without reasoning is the final one"
#: What marks supervise before an answer, and why it is context here.
BEFORE = {
    "deepseek_r1_distill": ("<｜Assistant｜>", HEADER),
    "deepseekv3": ("<｜Assistant｜>", HEADER),
    "glm4moe": ("\n<think></think>", BLOCK),
    "gptoss": ("<|start|>assistant<|channel|>final<|message|>", CHANNEL),
    "muse_glimmer": ("<|start|>assistant to=user<|message|>", CHANNEL),
    "qwen2_5": ("\n", HEADER),
    **dict.fromkeys(("nemotron_3_5_lightning", "nemotron_3_nano"), ("<think></think>", BLOCK)),
    **dict.fromkeys(("nemotron_3_super", "nemotron_3_ultra"), ("<think></think>", BLOCK)),
    **dict.fromkeys(("qwen3", "qwen3_5_nothink", "qwen3_5_think"), ("<think>\n\n</think>\n\n", BLOCK)),
    **dict.fromkeys(("qwen3_6", "qwen3_8"), ("<think>\n\n</think>\n\n", BLOCK)),
}
#: Ends that differ, as mark and as supervised, and why. White space behind an end is never generated, so never trained.
AFTER = {
    "gptoss": ("<|end|>", "<|return|>", "in a history an answer ends otherwise than where it is generated"),
}
#: Marks behind the end of an answer: the first one ends it.
SECOND = {"phi3": "<eos>", "phi3_5": "<eos>"}


def conversation(answers: int, system: str | None = None) -> list[Turn]:
    turns = [] if system is None else [Turn("system", system)]
    for number in range(answers):
        turns += [Turn("user", f"What is {number}?"), Turn("assistant", f"It is {number}.")]
    return turns


def supervised(template: ChatTemplate, turns: list[Turn]) -> list[str]:
    rows = template.rendered(Example(tuple(turns))).rows
    return [segment.text for row in rows for segment in row if segment.supervised]


def marks(name: str, template: ChatTemplate, turns: list[Turn]) -> list[str] | None:
    """The marks of a conversation, less what differs for a reason."""
    if not template.traits.system:
        turns = [turn for turn in turns if turn.role != "system"]
    parts = template.traits.parts
    found = marked(name, [{"role": turn.role, "content": content(turn.text, parts=parts)} for turn in turns])
    before = BEFORE.get(name, ("", ""))[0]
    old, new, _ = AFTER.get(name, ("", "", ""))
    if found is None:
        return None
    stripped = [text.removesuffix(SECOND.get(name, "")).removeprefix(before).rstrip() for text in found]
    return [text.removesuffix(old) + new if old and text.endswith(old) else text for text in stripped]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_supervised_is_what_the_marks_say(name: str) -> None:
    template = ChatTemplate(tokenizer_of(source_of(name)))
    for turns in (
        conversation(1),
        conversation(1, "Be brief."),
        conversation(1, ""),
        conversation(2),
        conversation(3, "Be brief."),
    ):
        found = supervised(template, turns)
        assert [text.strip().startswith("It is") for text in found] == [True] * (len(turns) // 2)
        assert all(text.endswith(template.traits.end) for text in found)
        expected = marks(name, template, turns)
        assert expected is None or found == expected


@pytest.mark.parametrize("name", [*BEFORE, *AFTER, *SECOND])
def test_the_differences_that_are_explained_are_there(name: str) -> None:
    template = ChatTemplate(tokenizer_of(source_of(name)))
    parts = template.traits.parts
    turns = [{"role": turn.role, "content": content(turn.text, parts=parts)} for turn in conversation(2)]
    text = "".join(marked(name, turns) or [])
    for mark in (BEFORE.get(name, ("",))[0], AFTER.get(name, ("",))[0], SECOND.get(name, "")):
        assert mark in text


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_of_an_answer_is_what_serving_builds(name: str) -> None:
    """Without reasoning, where the template can be told so."""
    tokenizer = tokenizer_of(source_of(name))
    template = ChatTemplate(tokenizer)
    rows = template.rendered(Example(tuple(conversation(3)))).rows
    said = [{"role": turn.role, "content": content(turn.text, parts=template.traits.parts)} for turn in conversation(3)]
    asked = [
        tokenizer.apply_chat_template(
            said[:at], tokenize=False, add_generation_prompt=True, enable_thinking=False, thinking=False
        )
        for at in (1, 3, 5)
    ]
    prompts = []
    for row in rows:
        text = ""
        for segment in row:
            if segment.supervised:
                prompts.append(text)
            text += segment.text
    dated = {"gptoss", "llama3_2", "muse_glimmer"}  # whose day is not today's
    no_switch = {"deepseek_r1_distill", "deepseekv3"}  # which ask for reasoning whatever they are told
    for prompt, served in zip(prompts, asked, strict=True):
        assert name in dated | no_switch or prompt == served
        assert prompt.endswith(template.traits.answered)


def test_rows_do_not_change_from_one_day_to_the_next() -> None:
    template = ChatTemplate(tokenizer_of(source_of("llama3_2")))
    [[context, _]] = template.rendered(Example(tuple(conversation(1)))).rows
    assert "Today Date: 26 Jul 2024" in context.text


def test_white_space_that_is_a_token_ends_nothing() -> None:
    """Gemma's tokenizers add line breaks and runs of them."""
    tokenizer = tokenizer_of(source_of("gemma3"))
    tokenizer.add_tokens(["\n", "\n\n"])
    template = ChatTemplate(tokenizer)
    assert (template.traits.end, template.traits.stops) == ("<end_of_turn>", ("<end_of_turn>", "<eos>"))
    assert supervised(template, conversation(2)) == ["It is 0.<end_of_turn>", "It is 1.<end_of_turn>"]


# ---------------------------------------------------------------- reasoning and tools

REASONING = Turn("assistant", "42", dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "6 by 7"))
TAGGED = Turn("assistant", "<think>\n6 by 7\n</think>\n\n42")


@pytest.mark.parametrize(
    ("name", "context", "answer"),
    [
        ("qwen3", "<|im_start|>assistant\n", "<think>\n6 by 7\n</think>\n\n42<|im_end|>"),
        ("qwen3_6", "<|im_start|>assistant\n<think>\n", "6 by 7\n</think>\n\n42<|im_end|>"),
        ("qwen3_8", "<|im_start|>assistant\n<think>\n", "6 by 7\n</think>\n\n42<|im_end|>"),
        ("qwen3_5_nothink", "<|im_start|>assistant\n<think>\n", "6 by 7\n</think>\n\n42<|im_end|>"),
        ("deepseek_r1_distill", "<｜Assistant｜><think>\n", "6 by 7\n</think>\n\n42<｜end▁of▁sentence｜>"),
        ("nemotron_3_nano", "<|im_start|>assistant\n<think>\n", "6 by 7\n</think>\n42<|im_end|>"),
        ("glm4moe", "<|assistant|>", "\n<think>6 by 7</think>\n42<|user|>"),
        ("gemma4_v5", "<|turn>model\n", "<|channel>thought\n6 by 7\n<channel|>42<turn|>"),
        (
            "gptoss",
            "<|start|>assistant",
            "<|channel|>analysis<|message|>6 by 7<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
        ),
    ],
)
@pytest.mark.parametrize("turn", [REASONING, TAGGED])
def test_reasoning_in_the_data_is_trained_and_no_part_of_the_reference(
    name: str, context: str, answer: str, turn: Turn
) -> None:
    encoder = Encoder(tokenizer_of(source_of(name)))
    example = Example((Turn("user", "6 * 7?"), turn))
    rendered = encoder.rendered(example)
    [[before, trained]] = rendered.rows
    assert before.text.endswith(context)
    assert trained.text == answer
    assert encoder.references(example, rendered) == ["42"]
    generated = encoder.tokenizer.encode(trained.text.removesuffix(encoder.template.traits.end))  # type: ignore[union-attr]
    prompt = encoder.tokenizer.encode(before.text)
    assert encoder.answer(prompt, generated) == "42"
    unclosed = encoder.tokenizer.encode(trained.text.partition("by")[0])
    assert encoder.answer(prompt, unclosed) == ""


def test_reasoning_that_a_template_would_drop_is_told() -> None:
    template = ChatTemplate(tokenizer_of(source_of("llama3")))
    with pytest.raises(RowError, match="reasoning, which the model's chat template leaves out"):
        template.rendered(Example((Turn("user", "6 * 7?"), REASONING)))
    [[_, trained]] = template.rendered(Example((Turn("user", "6 * 7?"), TAGGED))).rows  # in the text it is text
    assert trained.text == "<think>\n6 by 7\n</think>\n\n42<|eot_id|>"


CALL = Turn(
    "assistant",
    "",
    {
        "tool_calls": [
            {"type": "function", "id": "call00001", "function": {"name": "sum", "arguments": '{"of": [2, 3]}'}}
        ]
    },
)
OBSERVED = "<|observation|>"  # the next turn's mark, which ends this one
RESULT = Turn("tool", "5", {"name": "sum", "tool_call_id": "call00001"})


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "sum", "arguments": {"of": [2, 3]}}\n</tool_call><|im_end|>'),
        ("llama3_1", '{"name": "sum", "parameters": {"of": [2, 3]}}<|eot_id|>'),
        ("gptoss", ' to=functions.sum<|channel|>commentary json<|message|>{"of": [2, 3]}<|call|>'),
        (
            "glm4moe",
            "\n<tool_call>sum\n<arg_key>of</arg_key>\n<arg_value>[2, 3]</arg_value>\n</tool_call><|observation|>",
        ),
        ("lfm2_v2", "<|tool_call_start|>[sum(of=[2, 3])]<|tool_call_end|><|im_end|>"),
    ],
)
def test_tool_calls_and_what_tools_answer_reach_the_template(name: str, call: str) -> None:
    encoder = Encoder(tokenizer_of(source_of(name)))
    asked = Turn("user", "2 + 3?")
    example = Example((asked, CALL, RESULT, Turn("assistant", "It is 5.")))
    answers = [s.text for row in encoder.rendered(example).rows for s in row if s.supervised]
    assert answers[0] == call
    assert answers[1].strip().startswith("It is 5.")
    alone = Example((asked, CALL))
    rendered = encoder.rendered(alone)
    assert rendered.rows[0][-1].text == call
    [reference] = encoder.references(alone, rendered)
    prompt, generated = (encoder.tokenizer.encode(segment.text) for segment in rendered.rows[0])
    assert encoder.answer(prompt, generated[:-1]).strip() == reference


@pytest.mark.parametrize(
    ("turns", "tools", "message"),
    [
        ((Turn("user", "?"), CALL), (), "a tool call, which"),
        ((Turn("user", "?"), RESULT, Turn("assistant", "5")), (), "a message of the role 'tool', which"),
        (
            (Turn("user", "?"), Turn("assistant", "5")),
            ({"type": "function", "function": {"name": "f"}},),
            "tools, which",
        ),
    ],
)
def test_what_a_template_leaves_out_is_told(turns: tuple[Turn, ...], tools: tuple[object, ...], message: str) -> None:
    template = ChatTemplate(tokenizer_of(source_of("phi3")))
    with pytest.raises(RowError, match=f"^{message} the model's chat template leaves out"):
        template.rendered(Example(turns, tools=tools))


# ---------------------------------------------------------------- which answers are trained


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_answers_that_are_not_to_be_trained_are_context(name: str) -> None:
    template = ChatTemplate(tokenizer_of(source_of(name)))
    turns = conversation(3)
    turns[1] = Turn("assistant", "It is 0.", supervised=False)
    rendered = template.rendered(Example(tuple(turns)))
    assert [text.partition("<")[0] for row in rendered.rows for text in [row[-1].text]][-1] == "It is 2."
    assert "It is 0." in rendered.rows[0][0].text
    [last] = template.rendered(Example(tuple(turns)), last=True).rows
    assert [segment.supervised for segment in last] == [False, True]
    with pytest.raises(RowError, match="no answer that is to be trained"):
        template.rendered(Example((Turn("user", "?"), Turn("assistant", "!", supervised=False))))


def test_answers_behind_rewritten_histories_are_rows_of_their_own() -> None:
    qwen = ChatTemplate(tokenizer_of(source_of("qwen3"))).rendered(Example(tuple(conversation(3))))
    assert (len(qwen.rows), qwen.remarks) == (3, (APART,))
    assert "<think>" not in qwen.rows[2][0].text.partition("What is 2?")[0]  # as it is served
    llama = ChatTemplate(tokenizer_of(source_of("llama3"))).rendered(Example(tuple(conversation(3))))
    assert (len(llama.rows), llama.remarks) == (1, ())


# ---------------------------------------------------------------- learned and generated


def _families() -> dict[tuple[str, str], str]:
    """One template for each way in which an answer begins and ends."""
    found: dict[tuple[str, str], str] = {}
    for name in NAMES:
        traits = ChatTemplate(tokenizer_of(source_of(name))).traits
        found.setdefault((traits.answered, traits.close), name)
    return found


@pytest.mark.parametrize("name", sorted(_families().values()))
def test_what_was_learned_is_generated_and_ends(name: str) -> None:
    """Eight rows by heart: the end is learned, and nothing that the template writes is scored."""
    encoder = Encoder(tokenizer_of(source_of(name)))
    words = random.Random(name)
    answers = ["".join(words.choices("abcdefg ", k=words.randint(2, 9))).strip() + "." for _ in range(8)]
    rows = [encoder.encode(Example.single(f"{number}?", answer)) for number, answer in enumerate(answers)]
    begins = [max(0, row.prompt_tokens - 40) for row in rows]  # the end of a long prompt tells them apart
    ids = [list(row.input_ids[begin:]) for row, begin in zip(rows, begins, strict=True)]
    prompts = [row.prompt_tokens - begin for row, begin in zip(rows, begins, strict=True)]
    model = _by_heart(encoder.tokenizer, ids, prompts)
    asked = [tokens[:prompt] for tokens, prompt in zip(ids, prompts, strict=True)]
    said = predict(model, encoder, asked, max_new_tokens=24, batch=Packer(8))
    assert [text.strip() for text in said] == answers


def _by_heart(tokenizer: PreTrainedTokenizerBase, ids: list[list[int]], prompts: list[int]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, pad_token_id=2, eos_token_id=1))
    longest = max(map(len, ids))
    inputs = torch.tensor([[2] * (longest - len(row)) + row for row in ids])  # padded as generation pads
    real = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    labels = inputs.clone()
    for number, (row, prompt) in enumerate(zip(ids, prompts, strict=True)):
        labels[number, : longest - len(row) + prompt] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        logits = model(input_ids=inputs, attention_mask=real).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    return model.eval()
