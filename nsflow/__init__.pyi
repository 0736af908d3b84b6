"""What the package offers, for type checkers and for the lazy imports of `__init__.py`."""

from .diffusion.energy import EnergyModel as EnergyModel
from .flow.flow import Flow as Flow
from .flow.flow import fit as fit
from .flow.training import Training as Training
from .likelihood.likelihood import HostLikelihood as HostLikelihood
from .likelihood.likelihood import JaxLikelihood as JaxLikelihood
from .merge import merge as merge
from .nested.progress import Progress as Progress
from .nested.state import Problem as Problem
from .nested.state import Settings as Settings
from .numerics.errors import LikelihoodError as LikelihoodError
from .numerics.storable import storable as storable
from .prior.periodic import Periodic as Periodic
from .prior.prior import Prior as Prior
from .proposals.estimators import AbstractEstimator as AbstractEstimator
from .proposals.estimators import FlowEstimator as FlowEstimator
from .proposals.estimators import GaussianEstimator as GaussianEstimator
from .proposals.estimators import GaussianMixtureEstimator as GaussianMixtureEstimator
from .proposals.estimators import KernelEstimator as KernelEstimator
from .results import plots as plots
from .results.results import Results as Results
from .results.results import load as load
from .sampler import init as init
from .sampler import run as run
from .sampler import step as step
