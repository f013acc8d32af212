"""Files of weights that are written tensor by tensor are what the library would have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from malora_cli.export import streamed
from malora_cli.export.streamed import Change, Header, rewrite

#: Widths, shapes and places that are easily got wrong.
TENSORS = {
    "b": torch.arange(5, dtype=torch.uint8),
    "half": torch.randn(3, 7).half(),
    "empty": torch.zeros(0, 4),
    "one": torch.tensor(2.5),
    "wide": torch.randn(5, dtype=torch.float64),
    "brain": torch.randn(2, 2).bfloat16(),
    "counts": torch.arange(3),
    "flags": torch.tensor([True, False, True]),
    "eight": torch.randn(3).to(torch.float8_e4m3fn),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "source.safetensors", metadata={"format": "pt", "made": "here"})
    return tmp_path / "source.safetensors"


def test_a_file_that_is_not_changed_is_the_same_file(source: Path, tmp_path: Path) -> None:
    rewrite(source, tmp_path / "target.safetensors", None)
    assert_same(load_file(tmp_path / "target.safetensors"), TENSORS)
    with safe_open(tmp_path / "target.safetensors", framework="pt") as tensors:
        assert tensors.metadata() == {"format": "pt", "made": "here"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_another_number_format_is_rounded_to_once(dtype: torch.dtype, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.safetensors"
    third = Change(lambda: TENSORS["half"].double() / 3)
    rewrite(source, target, dtype, lambda name: third if name == "half" else None)
    expected = {
        name: tensor.to(dtype) if tensor.dtype.itemsize > 1 and tensor.is_floating_point() else tensor
        for name, tensor in TENSORS.items()
    }
    assert_same(load_file(target), {**expected, "half": (TENSORS["half"].double() / 3).to(dtype)})
    for name, about in Header.of(target).about.items():
        assert about["data_offsets"][0] % expected[name].dtype.itemsize == 0
    assert target.stat().st_size == Header.of(target).size + int.from_bytes(target.read_bytes()[:8], "little") + 8
    assert int.from_bytes(target.read_bytes()[:8], "little") % 8 == 0


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_what_is_added_is_rounded_once(
    dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows that are in memory at a time."""
    monkeypatch.setattr(streamed, "_VALUES", 7 * 3)
    weight, more = torch.randn(20, 7).bfloat16(), torch.randn(20, 7) * 1e-3
    save_file({"weight": weight, "other": weight.clone()}, tmp_path / "source.safetensors")
    changes = {"weight": Change(add=lambda part, rows: part.add_(more[rows]))}
    rewrite(tmp_path / "source.safetensors", tmp_path / "target.safetensors", dtype, changes.get)
    found = load_file(tmp_path / "target.safetensors")
    assert_same(
        found, {"weight": (weight.float() + more).to(dtype or weight.dtype), "other": weight.to(dtype or weight.dtype)}
    )


def test_a_file_that_ends_early_is_told(source: Path, tmp_path: Path) -> None:
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"source\.safetensors ends early"):
        rewrite(source, tmp_path / "target.safetensors", None)


def test_number_formats_of_half_a_byte_are_kept(tmp_path: Path) -> None:
    header = {
        "__metadata__": None,
        "a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]},
        "b": {"dtype": "F16", "shape": [1], "data_offsets": [8, 10]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "f4").write_bytes(len(text).to_bytes(8, "little") + text + bytes(10))
    found = Header.of(tmp_path / "f4").brought_to(torch.float32)
    assert [about["data_offsets"] for about in found.about.values()] == [[0, 4], [4, 12]]
    assert found.metadata == {}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].float(), tensor.float()), name
