"""Checkpoints on disk: `open_checkpoint` opens either kind."""
