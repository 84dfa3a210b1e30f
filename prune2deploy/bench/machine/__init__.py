"""What the machine is, which CPUs are used, and what disturbed a round, by its signals alone."""
