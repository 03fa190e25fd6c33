"""`python -m manyvec` is the `manyvec` command."""

from manyvec.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
