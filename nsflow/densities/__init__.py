"""Densities on R^d, and maps that carry one to another."""

from nsflow.densities.bases import AbstractBase as AbstractBase
from nsflow.densities.bases import AnyDistribution as AnyDistribution
from nsflow.densities.bases import EdgedBall as EdgedBall
from nsflow.densities.bases import Given as Given
from nsflow.densities.bases import Normal as Normal
from nsflow.densities.density import Proposal as Proposal
from nsflow.densities.gaussian import Gaussian as Gaussian
from nsflow.densities.kernels import Kernels as Kernels
from nsflow.densities.mixture import Mixture as Mixture
from nsflow.densities.pushforward import Pushforward as Pushforward
