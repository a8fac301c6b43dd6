"""`python -m hpcexp.tracking.server.web`: the process that answers requests, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from hpcexp.redaction import masked_text
from hpcexp.text.formatting import shown
from hpcexp.tracking.server.web.open_browser import open_in_browser
from hpcexp.tracking.server.web.settings import ENDING, VARIABLE, ServerSettings

_GRACE_S = 10
"""Open connections do not hold up the end for longer."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Masked(logging.Formatter):
    """Records without the secrets that addresses have in them, and without control characters of requests."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return shown(masked_text(self._inner.format(record)))


class _Server(uvicorn.Server):
    """Says that it answers, once it does."""

    def __init__(self, config: uvicorn.Config, message: str, screen: int, opened: str = "") -> None:
        super().__init__(config)
        self._message, self._screen, self._opened = message, screen, opened

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        with suppress(OSError):  # nobody reads it any more
            os.write(self._screen, f"{shown(self._message)}\n".encode())
        if self._opened:
            open_in_browser(self._opened, self._screen)


def main() -> int:
    """Serve; exit status."""
    settings = ServerSettings.of(os.environ)
    try:
        return _served(settings)
    finally:
        _tidy(settings)


def _served(settings: ServerSettings) -> int:
    if settings.users:
        os.umask(0o077)
    # What is started from here, as a repository of artifacts may, gets no token.
    del os.environ[VARIABLE]
    screen, complaints = os.dup(1), os.dup(2)
    has_log = bool(settings.log) and _log_to(settings.log)
    _handle(partial(_end_now, settings))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    try:
        server = _Server(_config(settings), settings.message, screen, settings.opened)
    except Exception as e:  # noqa: BLE001 - whatever MLflow fails of is said
        if has_log:
            traceback.print_exc()
        where = f"\nThe whole of it is in {settings.log}." if has_log else ""
        complaint = shown(masked_text(f"MLflow does not start: {e or type(e).__name__}{where}\n"))
        os.write(complaints, complaint.encode())
        return 1
    # uvicorn raises the signal that ended it once more, for whoever handled it before.
    _handle(_ignore)
    server.run(sockets=[socket.socket(fileno=settings.socket)])
    return 0


def _config(settings: ServerSettings) -> uvicorn.Config:
    logging.basicConfig(format=_FORMAT, level=logging.WARNING)
    from hpcexp.tracking.server.web.app import application

    config = uvicorn.Config(
        application(settings),
        log_config=_log_config(),
        # MLflow's only use of these events is to tidy up after its assistant, which is not served.
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
        proxy_headers=bool(settings.forwarded_from),
        forwarded_allow_ips=list(settings.forwarded_from),
        ssl_certfile=settings.certificate or None,
        ssl_keyfile=settings.key or None,
    )
    config.load()
    _mask_logs()
    gc.collect()
    gc.freeze()  # looking through MLflow's objects for garbage takes long, and there is none
    return config


def _log_config() -> dict[str, Any]:
    """uvicorn's loggers as all others: to the root."""
    names = ("uvicorn", "uvicorn.error", "uvicorn.access")
    loggers = {name: {"handlers": [], "level": "INFO", "propagate": True} for name in names}
    return {"version": 1, "disable_existing_loggers": False, "loggers": loggers}


def _mask_logs() -> None:
    """Have no handler write a secret, whoever made it."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        handler.setFormatter(_Masked(handler.formatter or logging.Formatter()))


def _log_to(file: str) -> bool:
    """Have stdout and stderr go to a file that is its owner's alone; whether they do."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        log = os.open(file, flags, 0o600)
        os.fchmod(log, 0o600)
    except OSError as e:
        print(f"{file} cannot be written: {e.strerror}. What MLflow has to say comes here.", file=sys.stderr)
        return False
    os.dup2(log, 1)
    os.dup2(log, 2)
    return True


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in ENDING:
        signal.signal(number, handler)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass


def _end_now(settings: ServerSettings, _number: int, _frame: FrameType | None) -> None:
    # No exception: what is just being imported could take it for one of its own.
    _tidy(settings)
    os._exit(0)


def _tidy(settings: ServerSettings) -> None:
    if settings.remove:
        Path(settings.remove).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
