"""What an installation has, and what is wrong with it; no torch in this process, nothing is written or fetched."""

from malora_cli.doctor.bundle import write_bundle
from malora_cli.doctor.checks import Check, checked

__all__ = ["Check", "checked", "write_bundle"]
