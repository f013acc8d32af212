"""Honest comparisons: the same data, order and steps for every method, as ordinary run folders."""
