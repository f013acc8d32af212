"""What one model answers to the questions of one task: from the store where it is known, else asked and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from malora_cli.adapters.routing import RoutingTally
from malora_cli.data.batch import Packer, collate
from malora_cli.data.encoding import Encoder
from malora_cli.data.packing import packs
from malora_cli.data.tasks import Task
from malora_cli.errors import RunError
from malora_cli.evals.choices import choice_nats, unasked
from malora_cli.evals.metrics._base import Answer, Metric
from malora_cli.evals.metrics._choosing import Choosing
from malora_cli.evals.predict import MORE_MEMORY, generate_lots
from malora_cli.evals.questions import Question
from malora_cli.evals.store import Store, key_of
from malora_cli.evals.subject import Subject
from malora_cli.modeling.heldout import HeldOut, held_out
from malora_cli.modeling.memory import fitting
from malora_cli.modeling.positions import most_positions


class Progress(Protocol):
    """Is told how far an evaluation has come."""

    def begin(self, subject: str, task: str, rows: int) -> None:
        """A model begins on the rows of a task."""

    def answered(self, rows: int) -> None:
        """So many more of them are answered."""


@dataclass(frozen=True)
class Examined:
    """A model's answers to the questions of a task.

    Args:
        answers: In the order of the questions.
        nats: Of the first reference of each, and its tokens.
        tally: What the tokens asked of the experts; None for a model without routers, or one that was not loaded.
    """

    answers: list[Answer]
    nats: list[tuple[float, int]]
    tally: RoutingTally | None


@dataclass(frozen=True)
class Examiner:
    """Asks a model.

    Args:
        subject: The model.
        encoder: Its encoder.
        batch: What goes through it at once at most.
        stored_only: Whether nothing may be asked that is not known.
        progress: Is told how far it has come.
    """

    subject: Subject
    encoder: Encoder
    batch: Packer
    stored_only: bool
    progress: Progress

    def examine(self, task: Task, metric: Metric, questions: Sequence[Question]) -> Examined:
        """Everything that a task's metric and its loss take.

        Raises:
            RunError: An answer is not known and may not be asked, cannot be kept, or memory does not suffice.
        """
        self.progress.begin(self.subject.name, task.name, len(questions))
        file, known = f"{task.name}.{self.subject.name}.jsonl", self.subject.known
        store = Store(self.subject.folder / file, known / file if known is not None else None)
        keys, losses = self._keys(task, metric, questions), self._loss_keys(questions)
        told = 0
        if any(key not in store.found for key in (*keys, *losses)):
            if self.stored_only:
                raise self._not_stored(task, sum(key not in store.found for key in keys))
            with store.writing():
                self._weigh(store, losses, questions)
                told = self._ask(store, task, metric, keys, questions)
        self.progress.answered(len(questions) - told)
        nats = [(float(nats), int(tokens)) for nats, tokens in (store.found[key]["loss"] for key in losses)]
        kept = [store.found[key] for key in keys] if keys else [{}] * len(questions)
        answers = [
            Answer(
                text=str(found.get("answer", "")),
                references=question.references,
                prompt=question.prompt,
                facts=question.facts,
                nats=found.get("nats", ()),
                prior_nats=found.get("prior_nats", ()),
                reference_nats=own,
            )
            for question, found, (own, _) in zip(questions, kept, nats, strict=True)
        ]
        if isinstance(metric, Choosing):
            answers = [replace(answer, text=metric.chosen(answer)) for answer in answers]
        return Examined(answers, nats, self._tally(store.found.get(_together(losses))))

    # ---------------------------------------------------------------- keys

    def _keys(self, task: Task, metric: Metric, questions: Sequence[Question]) -> list[str]:
        """What each answer is kept under."""
        if metric.kind == "generation":
            ends = [task.settings.max_new_tokens, self.encoder.stop_ids, self.encoder.stop_texts]
            whole = [self.subject.key, self.encoder.fingerprint, "answer", *ends]
            return [key_of(*whole, question.prompt_ids) for question in questions]
        if metric.kind == "choices":
            whole = [self.subject.key, "choices", self._prior(task, metric)]
            return [key_of(*whole, question.prompt_ids, question.choices) for question in questions]
        return []

    def _loss_keys(self, questions: Sequence[Question]) -> list[str]:
        """What the loss of each right answer is kept under."""
        rows = ([question.example.input_ids, question.example.spans] for question in questions)
        return [key_of(self.subject.key, "loss", row) for row in rows]

    def _not_stored(self, task: Task, missing: int) -> RunError:
        what = f"{missing:,} answers" if missing else "the loss"
        return RunError(
            f"{what} of {self.subject.name} on task '{task.name}' are not stored",
            where="--rescore",
            fix="Evaluate without --rescore, which asks the model for what is missing.",
        )

    # ---------------------------------------------------------------- asking

    def _ask(self, store: Store, task: Task, metric: Metric, keys: Sequence[str], questions: Sequence[Question]) -> int:
        """Keep the answers that are missing, lot by lot, and say how many the progress was told of."""
        done, told = {number for number, key in enumerate(keys) if key in store.found}, 0
        if metric.kind == "likelihood" or len(done) == len(keys):
            return told
        lots = {"generation": self._generated, "choices": self._chosen}[metric.kind]
        with self.subject.asked() as model:
            for lot in lots(model, task, metric, questions, done):
                fresh = {keys[number]: value for number, value in lot if keys[number] not in store.found}
                if fresh:
                    store.add(fresh.items())
                self.progress.answered(len(lot))
                told += len(lot)
        return told

    def _generated(
        self, model: Any, task: Task, metric: Metric, questions: Sequence[Question], done: set[int]
    ) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        prompts = [question.prompt_ids for question in questions]
        longest = task.settings.max_new_tokens
        for lot in generate_lots(model, self.encoder, prompts, max_new_tokens=longest, batch=self.batch, done=done):
            yield [(number, {"answer": made.text, "tokens": made.tokens, "stop": made.stop}) for number, made in lot]

    def _chosen(
        self, model: Any, task: Task, metric: Metric, questions: Sequence[Question], done: set[int]
    ) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        prompts, choices = [question.prompt_ids for question in questions], [question.choices for question in questions]
        prior = self._prior(task, metric)
        for lot in choice_nats(model, prompts, choices, batch=self.batch, prior=prior, done=done):
            yield [(number, {"nats": found.nats, "prior_nats": found.prior_nats}) for number, found in lot]

    def _prior(self, task: Task, metric: Metric) -> list[int] | None:
        """The prompt without a question, where the metric weighs choices behind it too."""
        return unasked(self.encoder, task.system) if metric.needs_prior else None

    def _weigh(self, store: Store, keys: Sequence[str], questions: Sequence[Question]) -> None:
        """Keep the losses of the right answers, and what the tokens of all of them asked of the experts."""
        if all(key in store.found for key in keys):
            return
        with self.subject.asked() as model:
            _check_positions(model, max(len(question.example.input_ids) for question in questions))
            measured = _losses(model, questions, self.batch)
        lot: dict[str, dict[str, Any]] = {
            key: {"loss": pair} for key, pair in zip(keys, measured.examples, strict=True) if key not in store.found
        }
        if measured.tally is not None and measured.tally.tokens_L.any():  # not where the adapter is switched off
            lot[_together(keys)] = measured.tally.kept()
        store.add(lot.items())

    def _tally(self, kept: dict[str, Any] | None) -> RoutingTally | None:
        if kept is None or not self.subject.models.is_loaded:
            return None
        return RoutingTally.of(kept, next(self.subject.models.loaded.parameters()).device)


def _check_positions(model: Any, longest: int) -> None:
    """Make sure that a model has positions for the longest row.

    Raises:
        RunError: It has none, as where solved rows stand in front.
    """
    most = most_positions(model)
    if most is not None and longest > most:
        raise RunError(
            f"the longest row has {longest:,} tokens, and this model has positions for {most:,}",
            fix="Show fewer solved rows (--shots), or leave the longest rows out (train.max_length).",
        )


def _together(keys: Sequence[str]) -> str:
    """What is known of some rows together is kept under this."""
    return key_of("together", keys)


def _losses(model: Any, questions: Sequence[Question], batch: Packer) -> HeldOut:
    """Nats and tokens of every question's first reference, in their order, and the routers' tally."""
    examples = [question.example for question in questions]
    lengths = [len(example.input_ids) for example in examples]

    def measure(packer: Packer) -> HeldOut:
        together = packs(lengths, tokens=packer.tokens, rows=packer.rows)
        found = held_out(model, (collate([examples[row] for row in rows]) for rows in together))
        order = [row for rows in together for row in rows]
        return replace(found, examples=[pair for _, pair in sorted(zip(order, found.examples, strict=True))])

    measured, _ = fitting(measure, batch, "the held-out rows", fix=MORE_MEMORY)
    return measured
