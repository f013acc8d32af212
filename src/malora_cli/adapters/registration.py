"""Telling PEFT about our methods as soon as it is there, without importing it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_TUNER = "malora_cli.adapters.tuner"
#: Modules of ours that import PEFT while they are imported themselves; whoever asks for one sees to the registration.
_UNDER_WAY = tuple(f"malora_cli.adapters.{name}" for name in ("config", "layer", "quick", "tuner"))


def register_with_peft() -> None:
    """Register the methods now where PEFT has been imported, and otherwise as soon as it is."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


def _register() -> None:
    if not any(name in sys.modules for name in _UNDER_WAY):
        importlib.import_module(_TUNER)


class _AfterPeft:
    """A finder of modules that finds PEFT by the others, and registers the methods once it has been executed.

    It stays until then: who only looks whether PEFT is installed, as transformers does, asks it as well.
    """

    def __init__(self) -> None:
        self._asking_the_others = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft" or self._asking_the_others:
            return None
        self._asking_the_others = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking_the_others = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_register(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            # On the instance alone: whoever asks the loader for sources or resources gets them as ever.
            setattr(spec.loader, "exec_module", then_register)  # noqa: B010 - a method, to a type checker
        return spec
