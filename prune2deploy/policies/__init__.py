"""When to prune and what: one file a method."""
