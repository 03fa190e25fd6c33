"""The `manyvec` command."""
