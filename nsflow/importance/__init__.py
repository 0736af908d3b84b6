"""Importance weights: evidence, effective sample size, and how heavy their tail is."""
