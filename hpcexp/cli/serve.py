"""`hpcexp serve`: MLflow for a group, with accounts."""

from __future__ import annotations

import argparse
import getpass
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from hpcexp.errors import ConfigError
from hpcexp.files.private import own_files
from hpcexp.redaction import without_password
from hpcexp.tracking.mlflow.links import ui_link
from hpcexp.tracking.mlflow.uri import resolve_uri
from hpcexp.tracking.server.accounts import Accounts
from hpcexp.tracking.server.group_server import (
    PERMISSIONS,
    Server,
    check,
    prepare,
    server_environment,
    settings,
    unserved,
)
from hpcexp.tracking.server.web.listen import listening
from hpcexp.tracking.server.web.settings import become

_LOCAL = ("localhost", "127.0.0.1")
"""How every machine calls itself."""


def serve(argv: Sequence[str]) -> NoReturn:
    """Check everything, then serve until SIGTERM or Ctrl-C."""
    a = _arguments(argv)
    server = _server(a)
    check(server)
    with unserved(server.data) as lock, listening(server.host, server.port) as listener:
        _have_admin(server, a.password_file)
        prepare(server)
        print(f"Starting MLflow on {server.data}, which takes some seconds …", file=sys.stderr, flush=True)
        os.set_inheritable(lock, True)  # and with the server it is free
        asked = settings(server, listener.fileno(), "\n".join(_announcement(server)))
        become(asked, server_environment(server, os.environ), "serve", str(server.data))


def _have_admin(server: Server, password_file: Path | None) -> None:
    """Have an administrator whose password is not everybody's."""
    accounts = Accounts(server.users)
    if password := _password(password_file, server.admin, is_needed=not accounts.has(server.admin)):
        with own_files():
            accounts.set_admin(server.admin, password)
    accounts.refuse_defaults(server.admin, "admin")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="hpcexp serve", description="Serve MLflow to a group, with accounts, until SIGTERM or Ctrl-C."
    )
    p.add_argument("data", type=Path, metavar="DIR", help="directory of its artifacts, accounts and SQLite database")
    p.add_argument("--store", metavar="URI", help="another database: postgresql://user:password@host/database; "
                   "prefer MLFLOW_BACKEND_STORE_URI, because everybody can read a command line")  # fmt: skip
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    p.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    p.add_argument("--allowed-hosts", metavar="NAMES", default="", help="more host names that browsers and jobs use, "
                   "such as mlflow.lab.org,10.0.0.5 (in addition to this machine's own)")  # fmt: skip
    p.add_argument("--forwarded-from", metavar="ADDRESSES", default="", help="addresses or networks of the proxy, such "
                   "as 127.0.0.1; its X-Forwarded-For names the client")  # fmt: skip
    p.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate (PEM) for https")
    p.add_argument("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")
    p.add_argument("--admin", default="admin", metavar="NAME", help="the administrator (default: admin)")
    p.add_argument("--password-file", type=Path, metavar="FILE", help="file with the administrator's password, for "
                   "the first start or to change it (default: MLFLOW_AUTH_ADMIN_PASSWORD, or ask)")  # fmt: skip
    p.add_argument("--permission", choices=PERMISSIONS, default=PERMISSIONS[0], help="what users may do with others' "
                   "experiments unless granted more (default: NO_PERMISSIONS)")  # fmt: skip
    return p.parse_args(argv)


def _server(a: argparse.Namespace) -> Server:
    data = a.data.resolve()
    store = resolve_uri(a.store or os.environ.get("MLFLOW_BACKEND_STORE_URI"), data, {})
    named = [name.strip() for name in a.allowed_hosts.split(",") if name.strip()]
    names = dict.fromkeys([*_LOCAL, socket.gethostname(), socket.getfqdn(), *named])
    certificate, key = (file and file.resolve() for file in (a.tls_cert, a.tls_key))
    proxies = tuple(address.strip() for address in a.forwarded_from.split(",") if address.strip())
    return Server(data, store, a.host, a.port, tuple(names), certificate, key, a.admin, a.permission, proxies)


def _password(file: Path | None, admin: str, *, is_needed: bool) -> str:
    """The administrator's, from the file, else where there is none yet from the environment or the terminal."""
    if file is not None:
        return _read_password(file)
    if not is_needed:
        return ""
    if password := os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD"):
        return password
    if not sys.stdin.isatty():
        raise ConfigError(
            f"The administrator '{admin}' has no password yet, and there is no default one.\n"
            "Fix: --password-file FILE, MLFLOW_AUTH_ADMIN_PASSWORD, or start it once in a terminal, which asks."
        )
    password = getpass.getpass(f"New password for {admin}: ")
    if password != getpass.getpass("Once more: "):
        raise ConfigError("These were two different passwords.\nFix: the same command again.")
    return password


def _read_password(file: Path) -> str:
    try:
        password, mode = file.read_text().strip(), file.stat().st_mode
    except OSError as e:
        raise ConfigError(f"--password-file {file} cannot be read: {e.strerror}.\nFix: a file with one line.") from e
    if mode & 0o077:
        raise ConfigError(f"--password-file {file} may be read by others.\nFix: chmod 600 {file}")
    if not password:
        raise ConfigError(f"--password-file {file} is empty.\nFix: a file with one line, the password.")
    return password


def _announcement(server: Server) -> Iterator[str]:
    yield f"{ui_link(server.address)}   (Ctrl-C ends it)"
    yield f"store      {without_password(server.store)}"
    yield f"artifacts  {server.artifacts}"
    yield f"new users  {server.address}/signup   (as {server.admin})"
    if not server.certificate and server.host not in ("127.0.0.1", "::1", "localhost"):
        yield "Passwords can be read on the way to it: --tls-cert and --tls-key, or a proxy with TLS (docs/server.md)."
