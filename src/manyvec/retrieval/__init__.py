"""Which documents a query finds, and in which order."""
