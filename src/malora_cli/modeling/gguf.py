"""GGUF files as ordinary model folders: converted once into the user's cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.constants import CONFIG_NAME
from platformdirs import user_cache_path

from malora_cli.errors import ModelError
from malora_cli.modeling.reason import first_line
from malora_cli.modeling.rope import with_plain_rope
from malora_cli.results import made_once, read_json, remembered_sha256, write_json

if TYPE_CHECKING:  # what converts is loaded when there is something to convert
    import torch
    from gguf import GGUFReader
    from transformers import PreTrainedModel

_LOG = logging.getLogger(__name__)
#: Raise it when a change here makes folders of older versions wrong.
_VERSION = 3
#: How the files of a split model end: "-00001-of-00003".
_PART = re.compile(r"-(\d{5})-of-(\d{5})")


def converted_folder(gguf: Path) -> Path:
    """The safetensors folder that stands for a GGUF file, made when it is not there yet.

    The folder's name holds the hash of the GGUF file, so a changed file is converted anew. A conversion appears
    whole or not at all, also when several processes start at once.

    Args:
        gguf: The file; weights, tokenizer and chat template are read from it.

    Returns:
        The folder, with float32 weights: what the quantised numbers stand for, exactly.

    Raises:
        ModelError: The file is no GGUF model that transformers can read in full, or the cache cannot be written.
    """
    part = _PART.search(gguf.stem)
    if part is not None and int(part[2]) > 1:
        raise _is_a_part(gguf, int(part[2]))
    try:
        source = remembered_sha256(gguf)
    except OSError as error:
        raise ModelError(f"it cannot be read ({error.strerror})", where=str(gguf)) from error
    folder = user_cache_path("malora") / "models" / f"{gguf.stem}-{source[:16]}-v{_VERSION}"
    try:
        made_once(folder, lambda scratch: _convert(gguf, source, scratch))
    except OSError as error:
        raise ModelError(
            f"the converted model cannot be written ({error})",
            where=str(folder.parent),
            fix="Free some space there, or set XDG_CACHE_HOME to another folder.",
        ) from error
    return folder


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Files that are read here are parsed once.

    For one model transformers parses a file three times and makes a map of names for every module, which is most of
    the time that a conversion takes: a vocabulary is read number by number.
    """
    import gguf as library

    names = ("GGUFReader", "get_tensor_name_map")
    plain = {name: getattr(library, name) for name in names}
    try:
        for name in names:
            setattr(library, name, cache(plain[name]))
        yield
    finally:
        for name in names:
            setattr(library, name, plain[name])


@_parsed_once()
def _convert(gguf: Path, source: str, folder: Path) -> dict[str, Any]:
    _LOG.info("converting %s, once for all", gguf.name)
    import gguf as library
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        reader = library.GGUFReader(str(gguf))  # as transformers names it
        parts = reader.get_field("split.count")
        if parts is not None and int(parts.contents()) > 1:
            raise _is_a_part(gguf, int(parts.contents()))
        # Else transformers would ask, as a question to be answered, whether to run code that lies beside the file.
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        model, found = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except ModelError:
        raise
    except Exception as error:  # whatever a parser meets in a file that is cut off or no GGUF at all
        if "custom code" in str(error):
            what = "files beside it name Python code of a model, which no GGUF file needs"
            raise ModelError(what, where=str(gguf), fix="Move it into a folder of its own.") from error
        raise ModelError(f"it cannot be read as a GGUF model ({first_line(error)})", where=str(gguf)) from error
    if found["missing_keys"]:  # transformers would go on with random ones
        missing = sorted(found["missing_keys"])
        raise ModelError(f"{len(missing)} of its weights are missing, as {missing[0]}", where=str(gguf), fix=_OTHERWISE)
    _check_all_read(gguf, reader, model)
    # The weights are no longer quantised; with this left in, trainers refuse the model.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    save_file(_own_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_json(folder / CONFIG_NAME, with_plain_rope(read_json(folder / CONFIG_NAME)))
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"source_sha256": source}


_OTHERWISE = "Take the model's safetensors folder or hub id instead."


def _is_a_part(gguf: Path, parts: int) -> ModelError:
    return ModelError(
        f"this is one of the {parts} parts of a split model",
        where=str(gguf),
        fix="Join them (`llama-gguf-split --merge FIRST-PART WHOLE.gguf`) and name the whole.",
    )


def _own_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights by name, those that are another's left out."""
    tied = set(model.all_tied_weights_keys)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}


def _check_all_read(gguf: Path, reader: GGUFReader, model: PreTrainedModel) -> None:
    """Make sure that transformers left no tensor of the file aside, which it does without a word.

    It renames, cuts and joins tensors, so they are compared by how many numbers they hold.

    Raises:
        ModelError: The file holds more than the model.
    """
    sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    if model.config.tie_word_embeddings:
        sizes.pop("output.weight", None)  # the embeddings once more
    aside = sum(sizes.values()) - sum(tensor.numel() for tensor in _own_weights(model).values())
    if aside > 0:
        names = [name for name in sizes if name.startswith("rope_")]  # the ones that are met in practice
        which = f" ({', '.join(names)})" if names else ""
        raise ModelError(
            f"it holds {aside:,} numbers more than a '{model.config.model_type}' model takes from a GGUF file{which}",
            where=str(gguf),
            fix=_OTHERWISE,
        )
