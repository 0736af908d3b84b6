"""Local maxima: ascents, basins, Laplace approximations, and how many are unseen."""
