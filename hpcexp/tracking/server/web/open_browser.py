"""Opens an address with a token in the user's browser, whose command line everybody may read."""

from __future__ import annotations

import atexit
import html
import os
import tempfile
import threading
import webbrowser
from contextlib import suppress
from functools import partial
from pathlib import Path

_KEPT_S = 60.0
"""A browser that starts anew may take as long to read the page."""
_PAGE = """<!doctype html>
<meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>hpcexp</title>
<meta http-equiv="refresh" content="0;url={address}">
<a href="{address}">{address}</a>
"""


def open_in_browser(address: str, screen: int) -> None:
    """Open a page of one's own that leads there, from a thread: some browsers are waited for.

    `screen`: the file that gets a word where no browser is found.
    """
    handle, name = tempfile.mkstemp(prefix="hpcexp-", suffix=".html")  # its owner's alone
    with os.fdopen(handle, "w") as file:
        file.write(_PAGE.format(address=html.escape(address)))
    atexit.register(partial(Path(name).unlink, missing_ok=True))
    threading.Thread(target=_open, args=(Path(name), screen), daemon=True).start()
    timer = threading.Timer(_KEPT_S, Path(name).unlink, kwargs={"missing_ok": True})
    timer.daemon = True
    timer.start()


def _open(file: Path, screen: int) -> None:
    is_open = False
    with suppress(webbrowser.Error, OSError):
        is_open = webbrowser.open(file.as_uri())
    if not is_open:
        file.unlink(missing_ok=True)
        with suppress(OSError):
            os.write(screen, b"No browser is found here: open the address yourself.\n")
