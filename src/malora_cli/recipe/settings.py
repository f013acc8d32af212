"""What the settings of every section have in common: the base classes and the rules for names."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from malora_cli.registry import did_you_mean

_LONGEST_NAME = 64
#: Of a run; file systems allow 255 bytes, and some are wanted for what lies beside it.
_LONGEST_RUN_NAME = 200


#: Text that says something.
Text = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """One section of a recipe: no unknown keys, never changed once read, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MethodSettings(Settings):
    """What every adapter method is asked; each method adds its own fields.

    A method's settings narrow ``name`` to ``Literal["its-name"]``, by which the section is told apart. Rules that
    span fields belong in a ``model_validator(mode="after")`` that raises ``ValueError``: the message is shown
    behind the line of the section.
    """

    name: str = Field(description="Adapter method")
    target_modules: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Names of the linear modules to adapt, as they end in the model, such as q_proj; null is the "
        "method's own choice",
    )


#: What a metric wants of a model: an answer that it generates, the likelihoods of answers that are given, or no more
#: than the likelihood of the right one, which is measured of every task.
Kind = Literal["generation", "choices", "likelihood"]


#: The metric that is a module of the user's own.
OWN_METRIC = "evaluate"


class MetricSettings(Settings):
    """What every metric is asked; each metric adds its options as fields."""

    kind: ClassVar[Kind] = "generation"
    #: What it wants of a row besides the right answers, such as ``("tests",)``: the task's `columns` say where it is.
    needs: ClassVar[tuple[str, ...]] = ()
    #: What it takes besides, where `columns` name it.
    wants: ClassVar[tuple[str, ...]] = ()

    name: Text = Field(description="Metric")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        vocabulary = (info.context or {}).get("vocabulary")
        if vocabulary is not None and name not in vocabulary.metrics:
            raise ValueError(f"unknown metric; {did_you_mean(name, vocabulary.metrics)}")
        return name

    def __str__(self) -> str:
        """The name, and the options that are chosen."""
        listed = (
            (option, " and ".join(value) if isinstance(value, tuple) else value) for option, value in self._chosen
        )
        options = ", ".join(f"{option}: {value}" for option, value in listed)
        return f"{self.name} ({options})" if options else self.name

    @property
    def _chosen(self) -> list[tuple[str, Any]]:
        """Options that are not left as they are."""
        fields = type(self).model_fields.items()
        options = {name: field.get_default(call_default_factory=True) for name, field in fields if name != "name"}
        return [(name, getattr(self, name)) for name, default in options.items() if getattr(self, name) != default]

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> Any:
        """The name alone where no option is chosen, as people write it."""
        return whole(self) if self._chosen else self.name

    @property
    def code(self) -> str | None:
        """The file of Python code of the user's own that it runs; None for one of malora's."""
        return None

    def reads(self, reference: str) -> bool:
        """Whether an answer can be read from a text: some metrics look for a number or a letter in it."""
        return True


def metric_of_text(text: str) -> dict[str, str]:
    """What plain text stands for as a metric: its name, or ``evaluate:PATH`` for a module of the user's own."""
    name, colon, path = text.partition(":")
    return {"name": name, "path": path} if colon and name == OWN_METRIC else {"name": text}


def _safe_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"names become file names and parts of dotted paths: at most {_LONGEST_NAME} letters, digits, - and _"
        )
    return name


def _safe_file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or len(name) > _LONGEST_RUN_NAME:
        raise ValueError(
            f"a run's name becomes a folder: at most {_LONGEST_RUN_NAME} letters, digits, '.', '-' and '_', not "
            "starting with '.' or '-'"
        )
    return name


def file_name_from(text: str) -> str:
    """The nearest thing to ``text`` that is safe as a run's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:_LONGEST_RUN_NAME] or "run"


#: A name that is safe as a file name and has no dot, so that it can stand in a dotted path.
Name = Annotated[str, AfterValidator(_safe_name)]
#: A name that is safe as a folder's name.
FileName = Annotated[str, AfterValidator(_safe_file_name)]
#: A whole number from 1.
Count = Annotated[int, Field(gt=0)]
