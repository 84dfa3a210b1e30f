"""Two results of one machine class, side by side."""
