"""`python -m hpcexp` is the same as `hpcexp`."""

from hpcexp.cli.main import main

main()
