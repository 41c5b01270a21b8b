"""`python -m qwenbench`."""

from qwenbench.cli.main import main

main()
