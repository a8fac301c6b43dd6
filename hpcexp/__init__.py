"""Declarative experiments: say what to run, and trust what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcexp.media.functions import (
        log_audio,
        log_figure,
        log_file,
        log_histogram,
        log_image,
        log_table,
        log_text,
    )

__version__ = "0.1.0"
__all__ = ["log_audio", "log_figure", "log_file", "log_histogram", "log_image", "log_table", "log_text"]


def __getattr__(name: str) -> Any:
    """The functions for user code, imported when they are used."""
    if name not in __all__:
        raise AttributeError(f"module 'hpcexp' has no attribute {name!r}")
    from hpcexp.media import functions

    return getattr(functions, name)
