"""`python -m qwenbench`."""

from qwenbench.cli.main import main

if __name__ == "__main__":
    main()
