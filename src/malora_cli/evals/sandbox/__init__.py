"""Code that a model wrote, run behind a boundary that the system keeps; one file a backend.

A module's ``BACKEND`` is the class. Nothing here loads torch.
"""

from __future__ import annotations

from malora_cli.evals.sandbox._backends import BACKENDS
from malora_cli.evals.sandbox._base import Limits
from malora_cli.evals.sandbox._outcome import Job, Outcome
from malora_cli.evals.sandbox._pool import CodeSandbox, open_sandbox

__all__ = ["BACKENDS", "CodeSandbox", "Job", "Limits", "Outcome", "open_sandbox"]
