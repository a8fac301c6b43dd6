"""What the machines of one job leave for each other."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from hpcexp.files.documents import Seconds


class RemoteFailure(Struct, frozen=True, kw_only=True):
    """`failed.json`: what ended the job on one of its machines."""

    host: str
    cause: str
    time: Seconds
    signal: Annotated[int, Meta(ge=0, le=64)] = 0
    """What killed a rank there from outside."""


class PlanRefusal(Struct, frozen=True, kw_only=True):
    """What a machine answers whose plan differs from the one that the leading machine shows."""

    to: str
    """Digest of the plan that is refused."""
    differs: str
