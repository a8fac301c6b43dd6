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
_WITHOUT_ASSISTANT = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')
"""


@contextmanager
def browsing(user_data: Path, account: tuple[str, str]) -> Iterator[Page]:
    """A page of a fresh browser that is logged in, and talks to this machine alone."""
    from playwright.sync_api import sync_playwright

    assert PROGRAM is not None
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            user_data,
            executable_path=PROGRAM,
            headless=True,
            args=_FLAGS,
            http_credentials={"username": account[0], "password": account[1]},
            ignore_https_errors=True,
            viewport={"width": 1500, "height": 950},
            reduced_motion="reduce",
        )
        context.set_default_timeout(30_000)
        context.add_init_script(_WITHOUT_ASSISTANT)
        try:
            yield context.pages[0]
        finally:
            context.close()
