"""From scores and a target to a plan: targets, alignment, allocation."""
