"""What the package offers, for type checkers and for the lazy imports of `__init__.py`."""

from . import plots as plots
from .energy import EnergyModel as EnergyModel
from .estimator import AbstractEstimator as AbstractEstimator
from .estimator import FlowEstimator as FlowEstimator
from .estimator import GaussianEstimator as GaussianEstimator
from .estimator import GaussianMixtureEstimator as GaussianMixtureEstimator
from .estimator import KernelEstimator as KernelEstimator
from .failure import LikelihoodError as LikelihoodError
from .flow import Flow as Flow
from .flow import fit as fit
from .likelihood import HostLikelihood as HostLikelihood
from .likelihood import JaxLikelihood as JaxLikelihood
from .merge import merge as merge
from .periodic import Periodic as Periodic
from .prior import Prior as Prior
from .progress import Progress as Progress
from .results import Results as Results
from .results import load as load
from .sampler import init as init
from .sampler import run as run
from .sampler import step as step
from .state import Problem as Problem
from .state import Settings as Settings
from .storable import storable as storable
from .train import Training as Training
