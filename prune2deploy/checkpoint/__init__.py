"""Checkpoints in (whatever the world saves) and bundles out (ours)."""
