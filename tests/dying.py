"""``malora`` whose training is gone after four steps: ``dying.py train ...``, as torchrun starts it."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch.distributed.tensor import DTensor

from malora_cli.cli import main
from malora_cli.train import trainer


def run(arguments: list[str]) -> None:
    plain = trainer.MaloraTrainer.training_step

    def dying(self: Any, *given: Any, **options: Any) -> Any:
        spread = [isinstance(parameter, DTensor) for parameter in self.model.parameters()]
        assert any(spread) == self.pace.settings.shard
        if self.state.global_step == 5:
            os._exit(9)
        return plain(self, *given, **options)

    trainer.MaloraTrainer.training_step = dying  # type: ignore[method-assign]
    main(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
