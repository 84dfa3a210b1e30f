"""Pruning to a latency: the engine is measured in parts, widths are chosen, whole networks are built and timed."""
