"""The accounts of a server: its administrator, with a password that is nobody's default."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from hpcexp.errors import ConfigError, RunError
from hpcexp.files.databases import have_database, reading
from hpcexp.files.untrusted import UnusableFileError
from hpcexp.tracking.mlflow.schemas import accounts_at, accounts_schema

DEFAULT_PASSWORDS = ("password1234", "password")
"""Administrator's passwords that MLflow was shipped with."""
_MIN_LENGTH = 12
"""MLflow's own."""


class Accounts:
    """Those in the SQLite database `users`. Only changing them imports MLflow."""

    def __init__(self, users: Path) -> None:
        self._users = users

    def has(self, name: str) -> bool:
        """Whether there is an account of this name."""
        return self._password_hash(name) is not None

    def refuse_defaults(self, *names: str) -> None:
        """RunError where one of these accounts has a password that everybody knows."""
        from werkzeug.security import check_password_hash

        for name in names:
            known = self._password_hash(name)
            if known and any(check_password_hash(known, word) for word in DEFAULT_PASSWORDS):
                raise RunError(
                    f"The account '{name}' has MLflow's default password, which everybody knows.\n"
                    f"Fix: hpcexp serve … --admin {name} --password-file FILE, which changes it."
                )

    def set_admin(self, name: str, password: str) -> None:
        """Make the administrator, or give the account a new password; ConfigError where it is a poor one.

        There is no moment at which the accounts are there without one.
        """
        check_password(password)
        have_database(self._users, accounts_schema(lambda path: _set_admin(path, name, password)))
        _set_admin(self._users, name, password)

    def _password_hash(self, name: str) -> str | None:
        if not os.path.lexists(self._users):
            return None
        asked = "SELECT password_hash FROM users WHERE username = ?"
        with reading(self._users) as connection:
            try:
                has_tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'users'").fetchone()
                # A first start that was ended early has made none.
                found = connection.execute(asked, (name,)).fetchone() if has_tables else None
            except sqlite3.DatabaseError as e:
                raise UnusableFileError(self._users, str(e)) from e
        return found and str(found[0])


def _set_admin(users: Path, name: str, password: str) -> None:
    with accounts_at(users) as store:
        if store.has_user(name):
            store.update_user(name, password=password, is_admin=True)
        else:
            store.create_user(name, password, is_admin=True)


def check_password(password: str) -> None:
    """ConfigError where it is too poor for an administrator."""
    if password in DEFAULT_PASSWORDS:
        raise ConfigError("That is MLflow's default password, which everybody knows.\nFix: another one.")
    if len(password) < _MIN_LENGTH:
        raise ConfigError(
            f"The administrator's password has {len(password)} characters; MLflow takes {_MIN_LENGTH} or more.\n"
            "Fix: a longer one, as of `openssl rand -base64 18`."
        )
