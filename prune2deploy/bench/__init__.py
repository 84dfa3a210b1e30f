"""From engines to raw samples to verdicts."""
