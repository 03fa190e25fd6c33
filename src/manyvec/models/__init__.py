"""Models of every family: which there are, how their checkpoints are read, and what encodes with them."""
