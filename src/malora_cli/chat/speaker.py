"""One side of a conversation that is a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from malora_cli.adapters.routing import RoutingTally, let_go_of_gates, routing_of, tallying
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import RowError, Turn
from malora_cli.errors import DataError, RunError
from malora_cli.evals.predict import Generated, Stop, as_answer, generating_by, generation, stops_of
from malora_cli.modeling.memory import Attempt, make_room
from malora_cli.modeling.modes import as_trained
from malora_cli.modeling.positions import most_positions


class Listener(Protocol):
    """Is told an answer piece by piece."""

    def thinks(self, text: str) -> None:
        """More of the reasoning before the answer."""

    def says(self, text: str) -> None:
        """More of the answer."""


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Args:
        max_new_tokens: Longest answer.
        temperature: 0 is greedy.
        seed: Of the answers that are sampled; None is another each time.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int | None = None

    @property
    def sampling(self) -> dict[str, float]:
        """As transformers takes it: by temperature alone, whatever else the model's own settings ask for."""
        return {"temperature": self.temperature, "top_k": 0, "top_p": 1.0} if self.temperature > 0 else {}


@dataclass(frozen=True)
class Experts:
    """What the tokens of one answer asked of the experts.

    Args:
        load: By layer group, the experts' shares of the assignments; see `Routing.load_by_group`.
        entropy: By layer group, the mean entropy of the routers' softmax, 0 (certain) to 1 (uniform).
    """

    load: dict[str, list[float]]
    entropy: dict[str, float]


@dataclass(frozen=True)
class Reply:
    """An answer.

    Args:
        generated: Its text, its length and what ended it.
        interrupted: Whether it was ended from outside.
        experts: Of a model that was asked for them.
    """

    generated: Generated
    interrupted: bool
    experts: Experts | None


class _Stream(BaseStreamer):
    """Takes tokens as transformers generates them, behind the prompt."""

    def __init__(self, hear: Callable[[Sequence[int]], None]) -> None:
        self.made: list[int] = []
        self._hear, self._prompted = hear, False

    def put(self, value: Tensor) -> None:
        """Take the prompt, and then one token at a time."""
        if self._prompted:
            self.made += value.flatten().tolist()
            self._hear(self.made)
        self._prompted = True

    def end(self) -> None:
        """What ended it follows from the tokens."""


class _Ended(StoppingCriteria):
    """Ends an answer when it is told to."""

    def __init__(self, ended: Callable[[], bool]) -> None:
        self._ended = ended

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._ended(), device=input_ids.device)


class _Told:
    """Tells a listener what is new of an answer."""

    def __init__(self, listener: Listener) -> None:
        self._listener, self._thought, self._said = listener, "", ""

    def think(self, thought: str) -> None:
        """The reasoning so far."""
        if new := thought.removeprefix(self._thought):
            self._listener.thinks(new)
        self._thought = thought

    def say(self, said: str) -> None:
        """The answer so far."""
        if not said.startswith(self._said):  # what looked like the answer was reasoning, and nothing had said so
            self._listener.says("\n")
            self._said = ""
        if new := said[len(self._said) :]:
            self._listener.says(new)
        self._said = said


class Speaker:
    """A model and what was said to it and by it.

    Args:
        name: ``"base"``, ``"adapter"`` or ``"model"``.
        model: With its weights, in evaluation mode.
        encoder: The model's.
        system: System prompt; None leaves it to the chat template.
        plain: Whether the adapter is switched off.
        watched: Whether its experts are watched.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel | PeftModel,
        encoder: Encoder,
        system: str | None = None,
        *,
        plain: bool = False,
        watched: bool = False,
    ) -> None:
        self.name, self.model, self.encoder, self.system = name, model, encoder, system
        self.turns: list[Turn] = []
        self._plain, self._watched = plain, watched
        self._decoder: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
        self._stops = stops_of(encoder, self._decoder)
        most = getattr(self._decoder.config.get_text_config(), "max_position_embeddings", None)
        self._context: int | None = most_positions(model) or most

    def ask(
        self,
        question: str,
        decoding: Decoding,
        listener: Listener,
        *,
        number: int = 0,
        ended: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """Answer the next question of the conversation.

        Args:
            question: What is asked.
            decoding: How the answer is decoded.
            listener: Is told the answer as it is generated.
            number: Added to the seed.
            ended: Asked behind every token whether that was the last.

        Raises:
            DataError: The chat template refuses the conversation.
            RunError: It is too long for the model, or memory does not suffice.
        """
        turns = [*self.turns, Turn("user", question)]
        prompt = self._prompt(turns)
        room = decoding.max_new_tokens
        if self._context is not None:
            room = min(room, self._context + 1 - len(prompt))  # the last token is not read
        cut: Stop = "length" if room == decoding.max_new_tokens else "room"
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed + number)
        told = _Told(listener)
        with self._switched():
            made, tally = self._generated(prompt, room, decoding, told, ended)
        generated = as_answer(self.encoder, prompt, made, self._stops, cut)
        told.say(generated.text)
        interrupted = generated.stop == cut and len(made) < room
        if generated.text or not interrupted:
            self.turns = [*turns, Turn("assistant", generated.text)]
        return Reply(generated, interrupted, self._experts(tally))

    def forget(self) -> None:
        """Begin a new conversation."""
        self.turns = []

    def _prompt(self, turns: Sequence[Turn]) -> list[int]:
        try:
            prompt = self.encoder.prompt(turns, self.system)
        except RowError as error:
            raise DataError(f"{error}", where="conversation") from error
        if self._context is not None and len(prompt) > self._context:
            raise RunError(
                f"it has {len(prompt):,} tokens, and the context of this model is {self._context:,}",
                where="conversation",
                fix="Ask something shorter, or in a new conversation.",
            )
        return prompt

    def _generated(
        self, prompt: Sequence[int], room: int, decoding: Decoding, told: _Told, ended: Callable[[], bool]
    ) -> tuple[list[int], RoutingTally | None]:
        """The tokens of an answer, and what they asked of the experts where these are watched."""
        tally: RoutingTally | None = None
        watching = ExitStack()

        def hear(made: Sequence[int]) -> None:
            nonlocal tally
            if self._watched and tally is None:  # by now the prompt has been read
                tally = watching.enter_context(tallying(self.model))
            if made[-1] not in self._stops:
                thought, said = self.encoder.so_far(prompt, made)
                told.think(thought)
                told.say(said)

        stream, device = _Stream(hear), self._decoder.device
        config = generation(self.encoder, self._stops, room, **decoding.sampling)
        answering = generating_by(self._decoder, config)
        with Attempt() as attempt, watching, torch.no_grad(), as_trained(self._decoder), answering:
            self._decoder.generate(
                input_ids=torch.tensor([prompt], device=device),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=device),
                tokenizer=self.encoder.tokenizer,
                streamer=stream,
                stopping_criteria=[_Ended(ended)],
            )
        if attempt.out_of_memory:
            raise self._out_of_memory()
        return stream.made, tally

    def _switched(self) -> AbstractContextManager[Any]:
        """The adapter as it is to be."""
        return self.model.disable_adapter() if self._plain and isinstance(self.model, PeftModel) else nullcontext()

    def _out_of_memory(self) -> RunError:
        let_go_of_gates(self.model)
        make_room()
        fix = "Ask something shorter, or in a new conversation, or lower --max-new-tokens."
        return RunError("out of memory while answering", where="conversation", fix=fix)

    def _experts(self, tally: RoutingTally | None) -> Experts | None:
        routing = routing_of(self.model)
        if tally is None or routing is None:
            return None
        tallies = {"": tally}
        return Experts(routing.load_by_group(tallies)[""], routing.entropy_by_group(tallies)[""])
