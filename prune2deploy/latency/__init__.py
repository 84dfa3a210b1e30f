"""Latency tables: what an engine takes for each unit of a network, measured on the engine itself and kept on disk."""
