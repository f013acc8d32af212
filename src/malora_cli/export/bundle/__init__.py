"""Bundles: a routed model as a folder that plain transformers loads, the base's shards unchanged in it."""
