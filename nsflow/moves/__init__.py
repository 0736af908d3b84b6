"""Moves of points inside a likelihood contour, and the flow that learns while they move."""

from nsflow.moves.ellipsoids import Ellipsoids as Ellipsoids
from nsflow.moves.inner_kernel import AbstractInnerKernel as AbstractInnerKernel
from nsflow.moves.inner_kernel import IndependenceMH as IndependenceMH
from nsflow.moves.inner_kernel import LatentSlice as LatentSlice
from nsflow.moves.inner_kernel import Mixture as Mixture
from nsflow.moves.inner_kernel import Rejection as Rejection
from nsflow.moves.learner import Learner as Learner
