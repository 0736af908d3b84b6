"""Checkpoints: a state to bytes and back."""
