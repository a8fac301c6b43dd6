"""A real Chromium without a screen, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def browsing(user_data: Path, account: tuple[str, str] | None = None) -> Iterator[Page]:
    """A page of a fresh browser that is logged in, where an account is given, and talks to this machine alone."""
    from playwright.sync_api import sync_playwright

    assert PROGRAM is not None
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            user_data,
            executable_path=PROGRAM,
            headless=True,
            args=_FLAGS,
            http_credentials={"username": account[0], "password": account[1]} if account else None,
            ignore_https_errors=True,
            viewport={"width": 1500, "height": 950},
            reduced_motion="reduce",
        )
        context.set_default_timeout(30_000)
        try:
            yield context.pages[0]
        finally:
            context.close()
