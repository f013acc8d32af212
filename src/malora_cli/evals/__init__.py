"""Scoring a run: predictions, metrics, and the base model beside the adapter.

Importing this package or ``metrics`` loads neither torch nor transformers; the other modules do.
"""
