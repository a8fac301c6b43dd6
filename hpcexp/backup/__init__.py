"""Copies of runs, artifacts and databases, taken while they are in use, checked, and brought back."""
