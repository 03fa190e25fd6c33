"""Checkpoint layouts: how the files of each family become a model with weights."""
