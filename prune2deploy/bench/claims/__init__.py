"""What was claimed, what a run must measure to judge it, and the verdicts."""
