"""The socket that requests arrive at. It is bound before MLflow is imported, so that nobody else takes the port."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from hpcexp.errors import ConfigError

_BACKLOG = 1024


def port_problem(host: str, port: int) -> str | None:
    """Why nothing can listen at this port, and the way out; None where it can."""
    with _made(host) as s:
        return _bind(s, host, port)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; ConfigError where none can."""
    s = _made(host)
    problem = _bind(s, host, port)
    if problem:
        s.close()
        raise ConfigError(problem)
    s.listen(_BACKLOG)
    return s


def listening_at(path: Path) -> socket.socket:
    """A Unix socket that listens at `path`, which its owner alone may connect to; ConfigError where none can."""
    s = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        if _is_left_over(path):
            path.unlink()
        s.bind(str(path))
        s.listen(_BACKLOG)
    except OSError as e:
        s.close()
        why = e.strerror or str(e)
        raise ConfigError(f"--socket {path}: {why}.\nFix: a path that does not exist, in a directory of yours.") from e
    finally:
        os.umask(mask)
    return s


def _made(host: str) -> socket.socket:
    # The protocol is named because asyncio sets TCP_NODELAY only where it is; without, a request takes 44 ms more.
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return s


def _bind(s: socket.socket, host: str, port: int) -> str | None:
    try:
        s.bind((host, port))
    except socket.gaierror as e:
        return f"--host {host}: {e.strerror}.\nFix: --host 127.0.0.1, or an address of this machine."
    except (OSError, OverflowError) as e:
        return f"--port {port}: {getattr(e, 'strerror', None) or e} ({host}).\nFix: --port {min(port, 65534) + 1}"
    return None


def _is_left_over(path: Path) -> bool:
    """Whether a socket is there that nobody listens at, as of a server that was killed."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
