"""What one build does in its own process: engines, the gate, inputs, and timed rounds in random order."""
