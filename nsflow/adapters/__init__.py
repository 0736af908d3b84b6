"""Thin adapters to other nested samplers, one file per host."""
