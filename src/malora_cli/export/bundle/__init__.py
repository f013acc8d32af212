"""Bundles: a routed model as a folder that plain transformers loads, the base's shards unchanged in it."""

from malora_cli.export.bundle.refusals import check_bundle
from malora_cli.export.bundle.write import Bundle, write_bundle

__all__ = ["Bundle", "check_bundle", "write_bundle"]
