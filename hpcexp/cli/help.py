"""`hpcexp help`: groups, options and keys of the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hpcexp.cli.shared.config_reference import explain as explained
from hpcexp.cli.shared.config_reference import groups, options, sections
from hpcexp.compose.sources import conf_dirs
from hpcexp.text.formatting import pairs


def explain(argv: Sequence[str]) -> int:
    """Explain a group, option, section or key; without one, list them."""
    summary = "Explain a config group, option, section or key; without WORD, list them."
    p = argparse.ArgumentParser(prog="hpcexp help", description=summary)
    p.add_argument("word", nargs="?", metavar="WORD", help="for example optimizer, strategy=ddp, trainer.max_epochs")
    a = p.parse_args(argv)
    dirs = conf_dirs(Path.cwd(), None)
    if a.word:
        print(explained(a.word, dirs))
        return 0
    print("Groups, chosen by group=option:")
    print(pairs((g, " ".join(options(g, dirs))) for g in groups(dirs)))
    print("\nSections with keys, set by section.key=value:")
    print(pairs((s, (c.__doc__ or "").splitlines()[0]) for s, c in sections().items() if s))
    print("\nMore: hpcexp help WORD, for example hpcexp help trainer or hpcexp help trainer.max_epochs.")
    return 0
