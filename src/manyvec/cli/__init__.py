"""The `manyvec` command: `main` runs it; each command has a file in `commands`."""

from manyvec.cli.app import app, main

__all__ = ["app", "main"]
