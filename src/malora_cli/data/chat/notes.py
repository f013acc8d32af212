"""What is to be known of a model's chat template by who trains and serves it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from malora_cli.data.chat.template import ChatTemplate
from malora_cli.data.chat.traits import Traits
from malora_cli.data.formats._base import Example

_SERVE = "Serve a model so that was trained on such rows."


def notes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Sentences on the chat template of a tokenizer; none where it has none or does the usual."""
    if not tokenizer.chat_template:
        return []
    template = ChatTemplate(tokenizer)
    found = (_strange(template.traits), _asking(template.traits), _beginning(template))
    return [note for note in found if note is not None]


def _strange(traits: Traits) -> str | None:
    if not traits.strange:
        return None
    return (
        f"The chat template writes {', '.join(traits.strange)}, and the tokenizer has no such token: it is another "
        "model's. They are trained as text, and may not end an answer."
    )


def _asking(traits: Traits) -> str | None:
    if traits.quiet:
        return f"Where the data have no reasoning, answers are asked as with enable_thinking: false. {_SERVE}"
    if not traits.asks:
        return (
            "The chat template does not ask for answers (add_generation_prompt). They stand behind "
            f"{traits.answered!r} and end with {traits.end!r}."
        )
    if traits.answered != traits.asked:
        return (
            f"The chat template asks for an answer with {traits.asked!r}. Where the data have no reasoning, answers "
            f"are trained and asked behind {traits.answered!r}, as it writes them. {_SERVE}"
        )
    return None


def _beginning(template: ChatTemplate) -> str | None:
    tokenizer = template.tokenizer
    bos = tokenizer.bos_token
    text = template.rendered(Example.single("x", "x")).rows[0][0].text
    if not bos or text.startswith(str(bos)) or tokenizer("x")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return None
    return (
        f"The tokenizer begins a text with {bos}, and the chat template does not. Rows are trained without it, as the "
        "chat template serves them."
    )
