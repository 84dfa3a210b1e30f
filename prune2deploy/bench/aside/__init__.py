"""What is measured beside the timed rounds: memory, energy, and where the time goes by layer."""
