"""Bayesian evidence and posteriors by nested sampling with flow-matching proposals."""
