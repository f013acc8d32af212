"""Talking to a model: one answer after another, handed on as it is generated."""
