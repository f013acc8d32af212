"""How likely each choice of a question is, with all of them behind one prompt that goes through the model once.

The choices branch off from the prompt: in every branch positions go on from its end, and a mask lets a branch see the
prompt and itself. Several questions stand in one row. The last token of a choice need not go through the model, so a
choice of one token, such as a letter, takes none beside the prompt. Models that do not follow such a mask are given the
prompt once for each choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example
from malora_cli.errors import RunError
from malora_cli.evals.predict import MORE_MEMORY
from malora_cli.modeling.attention import PACKED_SDPA
from malora_cli.modeling.device import exact
from malora_cli.modeling.loss import moved, token_nats
from malora_cli.modeling.memory import Attempt, halved
from malora_cli.modeling.modes import as_trained, evaluating
from malora_cli.modeling.positions import most_positions

#: What is asked where a choice is weighed without its question.
UNASKED = "Answer:"
#: Tokens of a row, where nothing else is said: more are no faster, and the mask grows with their square.
_TOKENS = 2048
#: Settings of layers that see no further back than so many tokens.
_WINDOWS = ("sliding_window", "attention_chunk_size")
#: Whether a model follows a mask in which choices branch off.
_BRANCHES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Weighed:
    """How likely the choices of a question are.

    Args:
        nats: Negative log-likelihood of each behind the prompt, the mark that ends the turn left out.
        prior_nats: The same without the question; empty where that was not asked.
    """

    nats: list[float]
    prior_nats: list[float]


@dataclass(frozen=True)
class _Text:
    """A prompt, and what branches off from it: tokens, and the number of the choice that they are."""

    prompt: Sequence[int]
    branches: Sequence[tuple[int, Sequence[int]]]

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.prompt) + sum(len(choice) - 1 for _, choice in self.branches)

    def apart(self) -> list[_Text]:
        """The same with at most one branch that has tokens of its own behind each prompt."""
        short = [branch for branch in self.branches if len(branch[1]) == 1]
        long = [_Text(self.prompt, [branch]) for branch in self.branches if len(branch[1]) > 1]
        return ([_Text(self.prompt, short)] if short else []) + long


def unasked(encoder: Encoder, system: str | None = None) -> list[int]:
    """Tokens of the prompt that asks for an answer without a question.

    Args:
        encoder: The model's.
        system: System prompt of the task.
    """
    encoded = encoder.encode(Example.single(UNASKED, UNASKED), system)
    return list(encoded.input_ids[: encoded.prompt_tokens])


def choice_nats(
    model: Any,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    *,
    batch: Packer,
    prior: Sequence[int] | None = None,
    done: Collection[int] = (),
) -> Iterator[list[tuple[int, Weighed]]]:
    """Weigh the choices of questions, computed as in training.

    Args:
        model: A causal language model, wrapped or not.
        prompts: Tokens of the prompt of each question, at least one.
        choices: Tokens of each choice of each question, as the rows of a split have them.
        batch: What goes through the model at once at most; half of it where memory does not suffice.
        prior: Tokens of the prompt without a question, as of `unasked`, behind which choices are weighed as well.
        done: Numbers of questions that need no answer; a lot of nothing else is left out.

    Yields:
        Lot by lot, the numbers of questions and how likely their choices are.

    Raises:
        RunError: The model has too few positions, or memory does not suffice for one question.
    """
    longest = max((len(p) + len(choice) for p, own in zip(prompts, choices, strict=True) for choice in own), default=0)
    _check_length(model, longest)
    share = _window(model) >= longest and _branches(model)
    start, size = 0, Packer(batch.rows, batch.tokens or _TOKENS)
    while start < len(prompts):
        lot = _lot(prompts, choices, start, size, share)
        if all(number in done for number in lot):
            start = lot.stop
            continue
        with Attempt() as attempt:
            found = _weigh(model, [prompts[n] for n in lot], [choices[n] for n in lot], prior, share)
        if attempt.out_of_memory:
            size = halved(size, "weighing choices", fix=MORE_MEMORY)
            continue
        yield list(zip(lot, found, strict=True))
        start = lot.stop


def _check_length(model: Any, longest: int) -> None:
    limit = most_positions(model)
    if limit is not None and longest > limit:
        raise RunError(
            f"the longest prompt with a choice has {longest:,} tokens, and this model has positions for {limit:,}",
            where="weighing choices",
            fix=f"Leave out longer rows: train.max_length {limit} and the task's too_long: drop.",
        )


def _window(model: Any) -> float:
    """Tokens that every layer sees back."""
    config = _base(model).config.get_text_config()
    return min((window for name in _WINDOWS if (window := getattr(config, name, None))), default=float("inf"))


def _lot(
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    start: int,
    size: Packer,
    share: bool,
) -> range:
    """The questions from one on that go through the model together: at least that one."""
    tokens, end = 0, start
    while end < len(prompts) and end - start < size.rows:
        text = _Text(prompts[end], list(enumerate(choices[end])))
        tokens += sum(part.tokens for part in ([text] if share else text.apart()))
        if end > start and size.tokens is not None and tokens > size.tokens:
            break
        end += 1
    return range(start, end)


def _weigh(
    model: Any,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    prior: Sequence[int] | None,
    share: bool,
) -> list[Weighed]:
    """The choices of the questions of one lot."""
    numbered = iter(range(sum(map(len, choices))))
    texts = [_Text(p, [(next(numbered), choice) for choice in own]) for p, own in zip(prompts, choices, strict=True)]
    nats = iter(_nats(model, texts, share))
    found = [[next(nats) for _ in own] for own in choices]
    if prior is None:
        return [Weighed(own, []) for own in found]
    different = list(dict.fromkeys(tuple(choice) for own in choices for choice in own))
    known = dict(zip(different, _nats(model, [_Text(prior, list(enumerate(different)))], share), strict=True))
    return [Weighed(nats, [known[tuple(choice)] for choice in own]) for nats, own in zip(found, choices, strict=True)]


@torch.no_grad()
def _nats(model: Any, texts: Sequence[_Text], share: bool) -> list[float]:
    """Nats of every choice, by its number."""
    row = _row(texts if share else [part for text in texts for part in text.apart()], _base(model))
    device = next(model.parameters()).device
    with evaluating(model), as_trained(model):
        nats_K = exact(token_nats(model, moved(row, device)))
    choice_K = row["choices"].to(nats_K.device)
    count = sum(len(text.branches) for text in texts)
    return nats_K.new_zeros(count).index_add(0, choice_K, nats_K).tolist()


def _row(texts: Sequence[_Text], base: Any) -> dict[str, Any]:
    """One row of tokens, with what is asked where, as `token_nats` takes it, and ``choices`` (K,) of each target."""
    ids: list[int] = []
    positions: list[int] = []
    text_T: list[int] = []
    branch_T: list[int] = []
    asked: list[tuple[int, int, int]] = []
    for number, text in enumerate(texts):
        prompt = len(text.prompt)
        end = len(ids) + prompt - 1
        ids += text.prompt
        positions += range(prompt)
        branch_T += [0] * prompt
        for branch, (choice, tokens) in enumerate(text.branches, 1):
            at = [end, *range(len(ids), len(ids) + len(tokens) - 1)]
            asked += [(place, token, choice) for place, token in zip(at, tokens, strict=True)]
            ids += tokens[:-1]
            positions += range(prompt, prompt + len(tokens) - 1)
            branch_T += [branch] * (len(tokens) - 1)
        text_T += [number] * (len(ids) - len(text_T))
    at_K, targets_K, choices_K = zip(*asked, strict=True)
    row = {"input_ids": [ids], "position_ids": [positions], "positions": at_K, "targets": targets_K}
    found: dict[str, Any] = {name: torch.tensor(values) for name, values in {**row, "choices": choices_K}.items()}
    if any(sum(len(tokens) > 1 for _, tokens in text.branches) > 1 for text in texts):
        return {**found, "attention_mask": _mask(torch.tensor(text_T), torch.tensor(branch_T), base)}
    return {**found, "lengths": tuple(text.tokens for text in texts)}


def _mask(text_T: Tensor, branch_T: Tensor, base: Any) -> Tensor:
    """What each token sees of its text: the prompt and its own branch, as far as they stand before it."""
    same_TT = text_T[:, None] == text_T
    own_TT = (branch_T == 0) | (branch_T[:, None] == branch_T)
    seen_TT = (same_TT & own_TT).tril()[None, None]
    if base.config._attn_implementation in ("sdpa", PACKED_SDPA):
        return seen_TT
    hidden = torch.finfo(base.dtype).min
    return torch.zeros(seen_TT.shape, dtype=base.dtype).masked_fill_(~seen_TT, hidden)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _branches(model: Any) -> bool:
    """Whether choices behind one prompt are to a model what each of them is behind a prompt of its own."""
    base = _base(model)
    if base.config._attn_implementation.startswith("flash_attention"):  # which takes no mask of this shape
        return False
    if base not in _BRANCHES:
        ids = [token % base.config.get_text_config().vocab_size for token in range(100, 124)]
        text = _Text(ids[:8], list(enumerate((ids[8:12], ids[12:17], ids[17:]))))
        try:
            pairs = zip(_nats(model, [text], True), _nats(model, [text], False), strict=True)
            apart = max(abs(one - other) for one, other in pairs)
            _BRANCHES[base] = apart <= torch.finfo(base.dtype).eps ** 0.5
        except (RuntimeError, ValueError, TypeError):  # a mask of another shape or kind is wanted
            _BRANCHES[base] = False
    return _BRANCHES[base]
