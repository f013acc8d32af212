"""The router that the linears of a block share."""

from __future__ import annotations

from torch import Tensor


class BlockRouter:
    """The router that the linears of one module share, such as q, k and v.

    The linear that joined first has its weight and routes by its own input; the others take the gates from here, within
    the same forward pass. A pass that is computed again hands them on again.
    """

    def __init__(self) -> None:
        self._members: list[int] = []
        self._waiting: set[int] = set()
        self._gate_TE: Tensor | None = None
        self._entropy: Tensor | None = None

    def joined(self, linear: int) -> bool:
        """Add a linear by its number; whether it is the first, which has the router."""
        self._members.append(linear)
        return self._members[0] == linear

    def left(self, linear: int) -> None:
        """Forget a linear whose adapter is deleted."""
        self._members.remove(linear)

    def give(self, gate_TE: Tensor, entropy: Tensor | None) -> None:
        """Keep the gates, and their entropy where it is tallied, until every other linear has taken them."""
        self._waiting = set(self._members[1:])
        self._gate_TE, self._entropy = gate_TE if self._waiting else None, entropy

    def take(self, linear: int, tokens: int) -> tuple[Tensor, Tensor | None]:
        """The gates for an input of so many tokens, and their entropy where it is tallied.

        Raises:
            RuntimeError: The first linear has not seen these tokens, so the block calls its linears in another order
                than it lists them.
        """
        gate_TE = self._gate_TE
        if gate_TE is None or linear not in self._waiting or gate_TE.numel() // gate_TE.shape[-1] != tokens:
            raise RuntimeError(
                "a linear that shares its block's router was called before the first one of the block; "
                "set router to 'linear' for this model"
            )
        self._waiting.discard(linear)
        if not self._waiting:
            self._gate_TE = None
        return gate_TE, self._entropy

    def __deepcopy__(self, memo: dict[int, object]) -> BlockRouter:
        """Without the gates of a pass that was cut short: a tensor with a history cannot be copied."""
        copied = BlockRouter()
        copied._members = list(self._members)
        return copied
