"""Cutting a module by a plan, and proving that the cut is exact."""
