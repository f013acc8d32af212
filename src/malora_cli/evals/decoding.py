"""Greedy decoding in a batch whose rows come and go.

A row that is finished leaves and another takes its place, and what prompts begin with alike is read once. Keys and
values stay where they are: a step writes one column, and only what changes places is copied. All rows end at the newest
column, as if padded on the left; they differ in where they begin.

Shape suffixes: N rows, H heads, T columns, D width of a head.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

#: Where a model has its own way in these, only its own `generate` knows how it goes on from token to token.
_WAYS = ("generate", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
#: Tokens that prompts have to begin with alike for these to be read apart.
_WORTH_SHARING = 8
#: New prompts are read once so large a share of the rows is free: several at once take less time.
_FREE_SHARE = 4
#: Steps after which rows have moved on so far that they are moved back.
_SPARE_COLUMNS = 64


@dataclass
class Row:
    """One prompt to be continued.

    Args:
        prompt: Its tokens.
        room: Tokens that may be generated.
        ends: Whether the last token of an answer has ended it.
        made: What was generated.
    """

    prompt: Sequence[int]
    room: int
    ends: Callable[[Sequence[int]], bool]
    made: list[int] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Tokens whose keys and values are known: all but the newest."""
        return len(self.prompt) + len(self.made) - 1

    def goes_on(self, token: int) -> bool:
        """Add a token; False if it is the last one."""
        self.made.append(token)
        return len(self.made) < self.room and not self.ends(self.made)


def can_decode(decoder: PreTrainedModel) -> bool:
    """Whether a model takes keys and values as they are kept here: plain attention, and no way of its own."""
    own = any(getattr(type(decoder), way) is not getattr(GenerationMixin, way) for way in _WAYS)
    if own or decoder.config.is_encoder_decoder or not decoder._supports_default_dynamic_cache():
        return False
    kinds = getattr(decoder.config.get_text_config(), "layer_types", None) or ()
    layers = DynamicCache(config=decoder.config).layers
    return (
        "past_key_values" in inspect.signature(decoder.forward).parameters
        and "chunked_attention" not in kinds
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    )


def decode(decoder: PreTrainedModel, rows: Sequence[Row], at_once: int) -> None:
    """Continue prompts greedily, each until it ends.

    Args:
        decoder: A model for which `can_decode` holds.
        rows: Longest prompt first.
        at_once: Rows in the batch at most.
    """
    longest, room = len(rows[0].prompt), max(row.room for row in rows)
    batch = _Batch(decoder, at_once, longest + room + _SPARE_COLUMNS)
    shared = _shared(decoder, rows)
    waiting = deque(rows)
    while waiting or batch.rows:
        free = at_once - len(batch.rows)
        if waiting and (not batch.rows or free * _FREE_SHARE >= at_once):
            batch.admit([waiting.popleft() for _ in range(min(free, len(waiting)))], shared)
        else:
            batch.step(max((len(row.prompt) for row in waiting), default=0))


@dataclass
class _Frame:
    """What is in use of the buffers: columns from ``begin`` to ``end``, of so many rows and columns that there are."""

    rows: int
    columns: int
    begin: int = 0
    end: int = 0


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, in buffers for all that is to come.

    A layer with a sliding window keeps what is outside of it as well: the window is in the mask.
    """

    is_sliding = False

    def __init__(self, frame: _Frame) -> None:
        super().__init__()
        self.frame = frame

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room."""

        def zeros(states: Tensor) -> Tensor:  # what is masked is multiplied by zero, and has to be a number
            return states.new_zeros(self.frame.rows, states.shape[1], self.frame.columns, states.shape[3])

        self.keys, self.values = zeros(key_states), zeros(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the newest columns, and hand out all that are in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        frame, rows, end = self.frame, len(key_states), self.frame.end + key_states.shape[2]
        for buffer_NHTD, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer_NHTD[:rows, :, frame.end : end] = states
        keys_NHTD, values_NHTD = (buffer_NHTD[:rows, :, frame.begin : end] for buffer_NHTD in self.buffers)
        return keys_NHTD, values_NHTD

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """All of the keys and values."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that a query sees, and how many come before them."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.frame.end - self.frame.begin

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class _Memory:
    """Keys and values of all layers of a model, and which columns are real."""

    def __init__(self, decoder: PreTrainedModel, rows: int, columns: int) -> None:
        self.decoder, self.frame = decoder, _Frame(rows, columns)
        self.layers = [_Layer(self.frame) for _ in DynamicCache(config=decoder.config).layers]
        self.cache = Cache(layers=self.layers)
        self.mask_NT = torch.zeros(rows, columns, dtype=torch.int64, device=decoder.device)
        self.accepted = inspect.signature(decoder.forward).parameters.keys()

    def read(self, ids_NT: Tensor, positions_NT: Tensor) -> list[int]:
        """Read the next tokens of the first rows; what follows each."""
        frame, (rows, new) = self.frame, ids_NT.shape
        optional = {"position_ids": positions_NT, "logits_to_keep": 1}
        logits = self.decoder(
            input_ids=ids_NT,
            attention_mask=self.mask_NT[:rows, frame.begin : frame.end + new],
            past_key_values=self.cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self.accepted},
        ).logits
        frame.end += new
        following: list[int] = logits[:, -1].argmax(-1).tolist()
        return following

    def tensors(self) -> Iterator[Tensor]:
        """All that has rows, by columns."""
        yield self.mask_NT
        for layer in self.layers:
            for buffer_NHTD in layer.buffers:
                yield buffer_NHTD.transpose(1, 2)


def _shared(decoder: PreTrainedModel, rows: Sequence[Row]) -> _Memory:
    """What all prompts begin with, read once; nothing where that is little."""
    begins = [list(row.prompt[:-1]) for row in rows]  # the last token has to be read with what follows it
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(begins), max(begins), strict=False))
    prefix = [token for token, _ in alike]
    if len(rows) == 1 or len(prefix) < _WORTH_SHARING:
        prefix = []
    memory = _Memory(decoder, 1, len(prefix))
    if prefix:
        memory.mask_NT[:] = 1
        ids = torch.tensor([prefix], device=decoder.device)
        memory.read(ids, torch.arange(len(prefix), device=decoder.device).unsqueeze(0))
    return memory


def _read(decoder: PreTrainedModel, rows: Sequence[Row], shared: _Memory) -> tuple[_Memory, list[int]]:
    """Read prompts, as much of each as the longest has beyond what is shared; what follows each."""
    lengths = [len(row.prompt) for row in rows]
    width, new = max(lengths), max(lengths) - shared.frame.end
    memory, known = _Memory(decoder, len(rows), width), width - new
    begins = torch.tensor([width - length for length in lengths], device=decoder.device)
    columns = torch.arange(width, device=decoder.device)
    memory.mask_NT = (columns >= begins.unsqueeze(1)).long()
    positions_NT = (columns - begins.unsqueeze(1)).clamp(min=0)
    memory.frame.end = known
    for own, layer in zip(memory.layers, shared.layers, strict=True):
        if known:
            own.lazy_initialization(*layer.buffers)
            for buffer_NHTD, known_1HTD in zip(own.buffers, layer.buffers, strict=True):
                buffer_NHTD[:, :, :known] = known_1HTD[0, :, positions_NT[:, :known]].transpose(0, 1)
    ids = [[0] * (new - length) + list(row.prompt[-new:]) for row, length in zip(rows, lengths, strict=True)]
    return memory, memory.read(torch.tensor(ids, device=decoder.device), positions_NT[:, known:])


class _Batch:
    """The rows that are being continued, one token each a step."""

    def __init__(self, decoder: PreTrainedModel, at_once: int, columns: int) -> None:
        self.decoder, self.rows = decoder, list[Row]()
        self.memory = _Memory(decoder, at_once, columns)

    def admit(self, rows: Sequence[Row], shared: _Memory) -> None:
        """Read new prompts; those that go on beyond their first token become rows behind the others."""
        read, following = _read(self.decoder, rows, shared)
        kept = [at for at, (row, token) in enumerate(zip(rows, following, strict=True)) if row.goes_on(token)]
        if not kept:
            return
        frame, width = self.memory.frame, read.frame.end
        frame.end = max(frame.end, width)
        for own, other in zip(self.memory.layers, read.layers, strict=True):
            if not own.is_initialized:
                own.lazy_initialization(*other.buffers)
        into = slice(len(self.rows), len(self.rows) + len(kept))
        self.memory.mask_NT[into] = 0
        for own_NT, other_NT in zip(self.memory.tensors(), read.tensors(), strict=True):
            own_NT[into, frame.end - width : frame.end] = other_NT[kept]
        self.rows += [rows[at] for at in kept]

    def step(self, longest_waiting: int) -> None:
        """One token more for every row; those that are finished leave."""
        memory, frame, device = self.memory, self.memory.frame, self.decoder.device
        longest = max(row.read for row in self.rows)
        if frame.end == frame.columns:
            self._move_back(max(longest, longest_waiting))
        frame.begin = frame.end - longest
        memory.mask_NT[: len(self.rows), frame.end] = 1
        ids = torch.tensor([row.made[-1:] for row in self.rows], device=device)
        positions = torch.tensor([[row.read] for row in self.rows], device=device)
        following = memory.read(ids, positions)
        self._keep([at for at, row in enumerate(self.rows) if row.goes_on(following[at])])

    def _keep(self, kept: Sequence[int]) -> None:
        """Let the other rows go; the last ones take their places."""
        places = range(len(kept))
        free, moved = sorted({*places} - {*kept}), [at for at in kept if at >= len(kept)]
        begin, end = self.memory.frame.begin, self.memory.frame.end
        if moved:
            for own_NT in self.memory.tensors():
                own_NT[free, begin:end] = own_NT[moved, begin:end]
        for place, at in zip(free, moved, strict=True):
            self.rows[place] = self.rows[at]
        del self.rows[len(kept) :]

    def _move_back(self, width: int) -> None:
        """Put the newest columns where the first ones were."""
        frame = self.memory.frame
        for own_NT in self.memory.tensors():
            own_NT[:, :width] = own_NT[:, frame.end - width : frame.end].clone()
        frame.end = width
