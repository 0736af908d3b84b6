"""Priors: from distributions, or a transform of the unit cube, to latent coordinates and back."""
