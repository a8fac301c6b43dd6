"""Declarative experiments: say what to run, and trust what comes back."""

__version__ = "0.1.0"
