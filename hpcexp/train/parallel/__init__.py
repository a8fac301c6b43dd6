"""Strategies: how the ranks of a job work together."""
