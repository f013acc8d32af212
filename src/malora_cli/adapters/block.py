"""The router that the linears of a block share."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from malora_cli.adapters.kernel import Seen


class BlockRouter:
    """The router that the linears of one module share, such as q, k and v.

    The linear that joined first has its weight. The one that is called first routes by its own input, whichever that
    is, for models list their linears in another order than they call them in; the others take the gates from here,
    within the same forward pass. A pass that is computed again hands them on again.
    """

    def __init__(self) -> None:
        self._members: list[int] = []
        self._waiting: set[int] = set()
        self._gate_TE: Tensor | None = None
        self._seen: Seen | None = None
        self._weights = nn.ParameterDict()  # those of the linear that has them, by adapter

    def joined(self, linear: int, weights: nn.ParameterDict) -> bool:
        """Add a linear by its number, with its routers by adapter; whether it is the first, which has the router."""
        self._members.append(linear)
        if self._members[0] == linear:
            self._weights = weights
        return self._members[0] == linear

    def left(self, linear: int) -> None:
        """Forget a linear whose adapter is deleted."""
        self._members.remove(linear)

    def router_for(self, linear: int, adapter: str, features: int) -> Tensor | None:
        """The router's weight where this linear is the first to be called in a pass; None where gates wait for it.

        Args:
            linear: Its number.
            adapter: Name of the adapter.
            features: Size of the linear's input.

        Raises:
            RuntimeError: It is the first, and the router is made for inputs of another size.
        """
        if linear in self._waiting:
            return None
        router_EI: Tensor = self._weights[adapter]
        if router_EI.shape[1] != features:
            raise RuntimeError(
                f"a linear of {features} inputs is called before the first of its block, whose router reads "
                f"{router_EI.shape[1]}; set router to 'linear' for this model"
            )
        return router_EI

    def give(self, linear: int, gate_TE: Tensor, seen: Seen | None) -> None:
        """Keep the gates, and what was seen of them in evaluation, until every linear but this one has taken them."""
        self._waiting = set(self._members) - {linear}
        self._gate_TE, self._seen = gate_TE if self._waiting else None, seen

    def take(self, linear: int, tokens: int) -> tuple[Tensor, Seen | None]:
        """The gates for an input of so many tokens, and what was seen of them in evaluation.

        Raises:
            RuntimeError: The first linear of the block has not seen these tokens.
        """
        gate_TE = self._gate_TE
        if gate_TE is None or linear not in self._waiting or gate_TE.numel() // gate_TE.shape[-1] != tokens:
            raise RuntimeError(
                f"a linear that shares its block's router is given {tokens} tokens, which the first one of the block "
                f"has not seen; set router to 'linear' for this model"
            )
        self._waiting.discard(linear)
        if not self._waiting:
            self._gate_TE = None
        return gate_TE, self._seen

    def let_go(self) -> None:
        """Forget the gates of a pass that was cut short, and with their history every activation before them."""
        self._waiting, self._gate_TE, self._seen = set(), None, None

    def __deepcopy__(self, memo: dict[int, object]) -> BlockRouter:
        """Without the gates of a pass that was cut short: a tensor with a history cannot be copied."""
        copied = BlockRouter()
        copied._members = list(self._members)
        copied._weights = copy.deepcopy(self._weights, memo)
        return copied
