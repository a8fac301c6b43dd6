"""What is secret in a configuration, a command line or an environment, and the mask for it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any
from urllib.parse import unquote

MASK = "***"

_NAMES = r"passw(?:or)?d|passphrase|secret|credential|(?:api|access|private|account|auth|signing)[-_]?key"
_SECRET_NAME = re.compile(rf"{_NAMES}|pwd$", re.IGNORECASE)
_TOKEN_NAME = re.compile(r"token$", re.IGNORECASE)
_VOCABULARY = re.compile(
    r"(pad|eos|bos|cls|sep|mask|unk|class|image|start|stop|end|special|decoder\w*)[-_]?token$", re.IGNORECASE
)
"""Names that end in `token` and mean one of a language model's."""
_KNOWN_KEYS = {
    **dict.fromkeys(("AKIA", "ASIA"), r"[0-9A-Z]{16}\b"),  # Amazon
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), r"\w{30,}"),
    "glpat-": r"[\w-]{20,}",  # GitLab
    "hf_": r"[A-Za-z0-9]{30,}",  # Hugging Face
    "sk-": r"[\w-]{20,}",  # OpenAI, Anthropic
    **dict.fromkeys(("xoxa-", "xoxb-", "xoxp-", "xoxr-", "xoxs-"), r"[\w-]{10,}"),  # Slack
    "AIza": r"[\w-]{35}",  # Google
    "eyJ": r"[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # JSON web token
    "-----BEGIN ": r"(?:[A-Z]+ )*PRIVATE KEY-----(?:.*?-----END (?:[A-Z]+ )*PRIVATE KEY-----)?",
}
"""How the keys of well-known services begin → the rest. Looking for the beginnings first is fast."""
_SHORTEST_KEY = 15
"""Characters of the shortest of them."""
_QUERY = re.compile(r"""[?&;#](?P<name>[\w.~+%\[\]-]+)=(?P<value>[^&;#\s'"<>`]+)""")
"""A parameter of an address, with or without the address before it."""
_QUERY_NAME = re.compile(
    rf"{_NAMES}|pwd|token(?!iz)|sig$|signature|keys?[\[\]]*$"
    r"|(?:^|[-_.\[])(?:auth|authorization|jwt|sas|bearer|session|sid|code|pass)(?:[-_.\]]|$)",
    re.IGNORECASE,
)
"""Names of parameters that are secret: more than of a configuration's keys, as they are made to be short."""
_MAX_NESTED = 3
"""So often an address may be the value of another's parameter, with percent signs upon percent signs."""
_ASSIGNED = re.compile(
    rf"""(?:{_NAMES}|pwd)s?"""
    r"""(?:[-_]?\d+)?["']?\]?(?:\s{0,9}:\s{0,9}\w+)?\s{0,9}[:=]\s{0,9}"""
    r"""(["'])(?=[^"']*\d)(?=[^"']*[A-Za-z])[^\s"'{}<>*/]{8,}\1""",
    re.IGNORECASE,
)
"""A secret in quotes, as source code and configuration files assign it: letters and digits, no placeholder."""
_PAIR = re.compile(r"""([\w./@-]+)(\s*[:=]\s*)("[^"]*"|'[^']*'|[^,}\]\s]+)""")


@lru_cache(maxsize=10_000)
def is_secret(name: str) -> bool:
    """Whether a key, by the last of its dotted parts, or a variable has a name as secrets have."""
    last = name.rpartition(".")[2]
    return _SECRET_NAME.search(last) is not None or _is_token(last)


def has_secret(text: str) -> bool:
    """Whether a file's text has a key of a known form in it, or a password that it assigns."""
    is_key = any(beginning in text and _known_key(beginning).search(text) for beginning in _KNOWN_KEYS)
    return is_key or _ASSIGNED.search(text) is not None


def masked_text(text: str) -> str:
    """A text, as a command line, without passwords of URIs and without keys of a known form."""
    if "://" in text:
        text = without_passwords(text)
    if "=" in text:
        text = _QUERY.sub(_masked_parameter, text)
    if len(text) < _SHORTEST_KEY:
        return text
    for beginning in _KNOWN_KEYS:
        if beginning in text:
            text = _known_key(beginning).sub(MASK, text)
    return text


def masked(name: str, value: Any) -> Any:
    """The value of a key or variable as it may be stored and shown."""
    if value is None or isinstance(value, bool) or value == "" or str(value).startswith("${"):
        return value
    # What a count of tokens is called may end in `token` too.
    if is_secret(name) and not (isinstance(value, int | float) and _is_token(name)):
        return MASK
    return masked_text(value) if isinstance(value, str) else value


def masked_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration as it may be stored, and what is masked in it, by dotted name."""
    secrets: dict[str, Any] = {}
    return {key: _masked_node(str(key), str(key), value, secrets) for key, value in config.items()}, secrets


def filled(config: Mapping[str, Any], secrets: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that `masked_config` was given."""
    return {key: _filled_node(str(key), value, secrets) for key, value in config.items()} if secrets else dict(config)


def masked_override(override: str) -> str:
    """An argument of a command line as it may be stored and shown."""
    key, equals, value = override.partition("=")
    if not equals:
        return masked_text(override)
    if is_secret(key.lstrip("+~")):
        return f"{key}={masked(key, value)}"
    if "{" in value:
        value = _PAIR.sub(lambda m: f"{m[1]}{m[2]}{MASK}" if is_secret(m[1]) else m[0], value)
    return f"{key}={masked_text(value)}"


def masked_command(command: Sequence[str]) -> str:
    """A command line as it may be stored and shown."""
    return shlex.join(map(masked_override, command))


def without_password(uri: str) -> str:
    """`uri` as it may be shown: without its password, and without the secrets of its parameters."""
    head, separator, rest = _QUERY.sub(_masked_parameter, uri).partition("://")
    user, at, host = rest.rpartition("@")
    return f"{head}{separator}{user.partition(':')[0]}{at}{host}"


def without_passwords(text: str) -> str:
    """A text, as a command line, in which no URI has its password, nor the secrets of its parameters."""
    return _QUERY.sub(_masked_parameter, re.sub(r"(://[^\s:/@]*):\S*@", r"\1@", text))


def _masked_parameter(found: re.Match[str]) -> str:
    """A parameter of an address, its value masked where its name is a secret's, or it is an address with such a one."""
    value = found["value"]
    is_secret_value = _QUERY_NAME.search(unquote(found["name"])) is not None
    for _ in range(_MAX_NESTED):
        if is_secret_value or "%" not in value:
            break
        value = unquote(value)
        nested = _QUERY.finditer(value)
        is_secret_value = any(_QUERY_NAME.search(unquote(inner["name"])) for inner in nested)
    return found[0][: found.start("value") - found.start()] + MASK if is_secret_value else found[0]


@cache
def _known_key(beginning: str) -> re.Pattern[str]:
    """Compiled at its first use: hardly a text has one, and all of them take a hundredth of a plan's time."""
    return re.compile(f"{beginning}(?<!\\w{beginning}){_KNOWN_KEYS[beginning]}", re.DOTALL)


def _is_token(name: str) -> bool:
    return _TOKEN_NAME.search(name) is not None and _VOCABULARY.search(name) is None


def _masked_node(path: str, name: str, value: Any, secrets: dict[str, Any]) -> Any:
    """`name`: what a value is called; items of a list have that of the list."""
    if isinstance(value, dict):
        return {key: _masked_node(f"{path}.{key}", f"{path}.{key}", item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked_node(f"{path}.{i}", name, item, secrets) for i, item in enumerate(value)]
    shown = masked(name, value)
    if shown is not value and shown != value:
        secrets[path] = value
    return shown


def _filled_node(path: str, value: Any, secrets: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _filled_node(f"{path}.{key}", item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled_node(f"{path}.{i}", item, secrets) for i, item in enumerate(value)]
    # What `.secrets` tells comes into the places of secrets alone: it could name another `_target_` otherwise.
    secret = secrets.get(path, value) if isinstance(value, str) and MASK in value else value
    return value if isinstance(secret, dict | list) else secret
