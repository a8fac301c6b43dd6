"""Tab completion of verbs, groups, options and keys: `eval "$(hpcexp -sc install=bash)"`, also zsh and fish."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from hpcexp.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
COMPOSING = ("train", "plan")
"""Verbs after which overrides stand."""
_PLAIN = re.compile(r"[\w.,:=+~@/%\[\]-]+")
"""What may be proposed to a shell."""


def complete(argv: Sequence[str], verbs: Sequence[str]) -> int:
    """Hydra's completion behind a verb. `argv`: `install=SHELL`, `uninstall=SHELL`, or from the shell `query=SHELL`."""
    if len(argv) != 1 or argv[0].rpartition("=")[2] not in SHELLS:
        raise ConfigError('-sc takes install=SHELL or uninstall=SHELL.\nFix: eval "$(hpcexp -sc install=bash)"')
    line = os.environ.get("COMP_LINE", "")
    if argv[0].startswith("query="):
        words = line.split()
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            print(" ".join(verbs))
            return 0
        if words[1] not in COMPOSING:
            return 0
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]]) + (" " if line.endswith(" ") else "")
    from hpcexp.compose.composer import Composer

    hydra = Composer(Path.cwd()).hydra
    if not argv[0].startswith("query="):
        hydra.shell_completion("config", list(argv))
        return 0
    with redirect_stdout(io.StringIO()) as found:
        hydra.shell_completion("config", list(argv))
    # bash expands what it is proposed (compgen -W): a file that is called `$(command)` would run it.
    separator = "\n" if argv[0].endswith("fish") else " "
    print(separator.join(word for word in found.getvalue().split() if _PLAIN.fullmatch(word)))
    return 0
