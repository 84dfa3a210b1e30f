"""The channel graph: which parameter slices can only leave together, and what each plan costs."""
