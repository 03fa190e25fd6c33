"""Models: `Encoder`, the protocol that indexes need, and `load_encoder`, which returns one for any published model."""
