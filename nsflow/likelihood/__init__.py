"""Likelihoods: on devices, in processes, recorded, and stopped."""
