"""Composes the stages into runs: one file a command's work."""
