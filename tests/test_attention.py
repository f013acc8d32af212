"""Attention within the examples of a packed row: as each alone, by every kernel there is, and no mask of the row made.

No GPU is needed: what only one has is played by a slow reference with the same signature.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from malora_cli.data.batch import TrainExample, collate
from malora_cli.modeling import attention, load_base, resolve_base
from malora_cli.modeling.attention import PACKED_SDPA, PackedRow, packed_attention
from malora_cli.modeling.loss import token_nats
from malora_cli.recipe import ModelSettings
from tiny_models import LAYERS, tiny, tokens

LENGTHS = (9, 14, 2, 20)
ROW = sum(LENGTHS)
#: Full, sliding, mixed and chunked attention, with and without shared heads.
KINDS = ["llama", "mistral", "gemma3_text", "llama4_text", "gpt2"]


def examples() -> list[TrainExample]:
    return [TrainExample(tokens(length, seed=length).tolist(), [(1, length)], 0) for length in LENGTHS]


def gradients(model: PreTrainedModel, *rows: list[TrainExample]) -> dict[str, Tensor]:
    """Nats of all rows and the gradients of their sum."""
    model.zero_grad()
    nats_K = torch.cat([token_nats(model, collate(row)) for row in rows])
    nats_K.sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"nats": nats_K.detach(), **found}


def alone(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return gradients(tiny(kind, dtype=dtype), *([example] for example in examples()))


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


class Varlen:
    """Stands in for `torch.nn.attention.varlen.varlen_attn`; keeps what it was asked."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, int]] = []
        self.dtypes: set[torch.dtype] = set()

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        assert cu_seq_q.dtype == torch.int32
        assert cu_seq_q is cu_seq_k
        bounds = cu_seq_q.tolist()
        assert max(end - start for start, end in pairwise(bounds)) == max_q == max_k
        self.windows.append(window_size)
        self.dtypes |= {query.dtype, key.dtype, value.dtype}
        left, right = window_size
        found = []
        for start, end in pairwise(bounds):
            q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
            ahead = torch.arange(end - start) - torch.arange(end - start)[:, None]
            seen = (ahead <= right) & ((ahead >= -left) | (left < 0))
            block = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
            found.append(block[0].transpose(0, 1))
        return torch.cat(found)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything takes this for a GPU that has no kernel for rows of examples."""
    monkeypatch.setattr(attention, "_on_cuda", lambda device: True)
    monkeypatch.setattr(attention, "_varlen_attention", lambda: None)
    return


@pytest.fixture
def varlen(on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> Varlen:
    """That has one."""
    stand_in = Varlen()
    monkeypatch.setattr(attention, "_varlen_attention", lambda: stand_in)
    monkeypatch.setattr(attention, "can_use_flash_attention", lambda params: True)
    monkeypatch.setattr(attention, "_LONG", 0)  # in float32, too, no row shares a mask
    return stand_in


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Tokens of every block that PyTorch's function computes, and whether it gets a mask."""
    found: list[tuple[int, bool]] = []

    def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        found.append((query.shape[2], mask is not None))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", spy)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_one_by_one_are_as_good_as_examples_alone(kind: str, blocks: list[tuple[int, bool]]) -> None:
    check_equal(gradients(tiny(kind, PACKED_SDPA), examples()), alone(kind))
    assert [size for size, _ in blocks] == [*LENGTHS] * LAYERS
    masked = {"llama": 0, "gpt2": 0, "mistral": LAYERS, "gemma3_text": LAYERS, "llama4_text": LAYERS}[kind]
    assert sum(with_mask for _, with_mask in blocks) == masked * len(LENGTHS)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_for_rows_is_as_good_as_examples_alone(
    kind: str, checkpointing: bool, varlen: Varlen, blocks: list[tuple[int, bool]]
) -> None:
    model = tiny(kind, PACKED_SDPA)
    if checkpointing:
        model.train().gradient_checkpointing_enable()
    check_equal(gradients(model, examples()), alone(kind))
    whole, window = {(-1, 0)}, {(3, 0)}
    windows = {"mistral": window, "gemma3_text": window, "llama4_text": set()}
    assert set(varlen.windows) == windows.get(kind, whole)
    assert bool(blocks) == (kind == "llama4_text")  # chunks are no windows: blocks one by one, by their masks


def test_a_window_that_holds_every_example_is_none(varlen: Varlen) -> None:
    model = tiny("mistral", PACKED_SDPA)
    token_nats(model, collate([TrainExample([5, 6, 7, 8], [(1, 4)], 0)] * 3))
    assert set(varlen.windows) == {(-1, 0)}


def test_what_the_kernel_for_rows_does_not_know_is_not_passed_over(
    varlen: Varlen, blocks: list[tuple[int, bool]]
) -> None:
    """PyTorch's own function knows dropout, and refuses to leave a cap on scores out."""
    query = torch.randn(1, 2, 5, 8)
    told = {"packed_row": PackedRow((2, 3)), "cu_seq_lens_q": torch.tensor([0, 2, 5], dtype=torch.int32)}
    packed_attention(nn.Module(), query, query, query, None, dropout=0.5, **told)
    packed_attention(nn.Module(), query[..., :7], query[..., :7], query[..., :7], None, **told)
    assert ([size for size, _ in blocks], varlen.windows) == ([2, 3, 2, 3], [])
    with pytest.raises(ValueError, match="softcap"):
        packed_attention(nn.Module(), query, query, query, None, softcap=30.0, **told)


def test_the_kernel_for_rows_gets_the_number_format_of_autocast(varlen: Varlen) -> None:
    expected = alone("llama", torch.bfloat16)["nats"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_nats(tiny("llama", PACKED_SDPA, torch.bfloat16), collate(examples()))
    assert varlen.dtypes == {torch.bfloat16}
    torch.testing.assert_close(found, expected.float(), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("long", "computed"), [(256, [ROW] * LAYERS), (8, [*LENGTHS] * LAYERS)])
def test_without_that_kernel_a_gpu_computes_long_examples_one_by_one(
    long: int, computed: list[int], on_cuda: None, blocks: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_LONG", long)
    check_equal(gradients(tiny("llama", PACKED_SDPA), examples()), alone("llama"))
    assert blocks == [(size, size == ROW) for size in computed]


class _Squares(TorchDispatchMode):
    """Counts tensors of T x T that are made, and what is read back from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.squares, self.reads = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        self.squares += isinstance(found, Tensor) and found.shape[-2:] == (ROW, ROW)
        return found


@contextmanager
def counted() -> Iterator[tuple[_Squares, list[Tensor]]]:
    """Within the block, squares that are made, and those that are kept for the backward pass."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] == (ROW, ROW):
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Squares() as squares:
        yield squares, kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", ["blocks", "varlen"])
def test_nothing_of_the_row_squared_is_made_or_kept(kind: str, kernel: str, request: pytest.FixtureRequest) -> None:
    if kernel == "varlen":
        request.getfixturevalue("varlen")
    reads = {"llama": 1, "mistral": 1}.get(kind, 2)
    model, other = tiny(kind, PACKED_SDPA), tiny(kind, "sdpa")
    with counted() as (squares, kept):
        token_nats(model, collate(examples()))
    assert (squares.squares, kept) == (0, [])
    # Transformers reads whether examples share the row, once for each kind of mask, and of GPT-2 its padding; layers
    # read nothing.
    assert squares.reads == reads
    with counted() as (squares, kept):
        token_nats(other, collate(examples()))
    assert squares.squares
    assert kept


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("kind", "masks"), [("llama", 1), ("mistral", 1), ("gemma3_text", 2)])
def test_short_examples_on_a_gpu_without_that_kernel_share_one_mask(
    kind: str, masks: int, mixed: bool, on_cuda: None
) -> None:
    """Each layer would keep one of its own; Gemma has layers of two kinds."""
    kept, found = [], []
    dtype = torch.bfloat16 if mixed else torch.float32
    for name in ("sdpa", PACKED_SDPA):
        model = tiny(kind, name, dtype=dtype, layers=6)
        with counted() as (_, squares), torch.autocast("cpu", enabled=mixed):
            nats_K = token_nats(model, collate(examples()))
        nats_K.sum().backward()
        kept.append({square.untyped_storage().data_ptr(): square for square in squares})
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert len(kept[0]) == 6
    assert len(kept[1]) == masks
    assert all(mask.dtype == dtype and mask.stride(-2) == 48 for mask in kept[1].values())  # aligned, or it is copied
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


def test_flash_attention_is_told_where_examples_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it looks for that in the position ids, in every layer, and waits for the GPU each time."""
    told: list[dict[str, Any]] = []

    def spy(module: nn.Module, query: Tensor, *rest: Any, **kwargs: Any) -> Any:
        told.append(kwargs)
        return sdpa_attention_forward(module, query, *rest, **kwargs)

    model = tiny("llama")
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", spy)
    model.config._attn_implementation_internal = "flash_attention_2"
    token_nats(model, collate(examples()))
    for kwargs in told:
        assert kwargs["cu_seq_lens_q"].tolist() == kwargs["cu_seq_lens_k"].tolist() == [0, 9, 23, 25, 45]
        assert (kwargs["max_length_q"], kwargs["max_length_k"]) == (20, 20)
    assert len(told) == LAYERS


def test_a_loaded_model_attends_by_example_unless_another_way_is_named(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    for name, expected in (("sdpa", PACKED_SDPA), ("eager", "eager")):
        settings = ModelSettings(base=str(tmp_path), attention=name)
        model = load_base(resolve_base(settings), settings)
        assert model.config._attn_implementation == expected
        model.save_pretrained(tmp_path / name)
        assert PACKED_SDPA not in (tmp_path / name / "config.json").read_text()


@pytest.mark.parametrize("gpu", [False, True])
def test_a_model_that_does_not_hand_its_row_on_goes_by_a_mask(
    gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if gpu:  # where the short examples that are tried would share a mask
        request.getfixturevalue("on_cuda")
    forward = LlamaDecoderLayer.forward

    def forgetful(self: nn.Module, *args: Any, packed_row: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forgetful)
    tiny("llama").save_pretrained(tmp_path)
    settings = ModelSettings(base=str(tmp_path))
    model = load_base(resolve_base(settings), settings)
    assert model.config._attn_implementation == "sdpa"
    check_equal(gradients(model, examples()), alone("llama"))


@torch.no_grad()
def test_attention_by_example_leaves_other_rows_to_pytorch() -> None:
    """Padded batches and decoding with a cache have masks of their own."""
    ids = tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    found = []
    for name in ("sdpa", PACKED_SDPA):
        model = tiny("llama", name)
        settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
        found.append((model(input_ids=ids, attention_mask=mask).logits[:, -1], model.generate(ids, **settings)))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
