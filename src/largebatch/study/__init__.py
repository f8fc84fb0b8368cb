"""Comparisons that are fair: searches with equal budgets, and what their seeds can support."""
