"""The sampler: levels, mode search, rounds, final draws."""
