"""Bayesian evidence and posteriors by nested sampling with flow-matching proposals."""

from nsflow.energy import EnergyModel as EnergyModel
from nsflow.estimator import AbstractEstimator as AbstractEstimator
from nsflow.estimator import FlowEstimator as FlowEstimator
from nsflow.estimator import GaussianEstimator as GaussianEstimator
from nsflow.estimator import GaussianMixtureEstimator as GaussianMixtureEstimator
from nsflow.estimator import KernelEstimator as KernelEstimator
from nsflow.flow import Flow as Flow
from nsflow.flow import fit as fit
from nsflow.likelihood import HostLikelihood as HostLikelihood
from nsflow.merge import merge as merge
from nsflow.prior import Prior as Prior
from nsflow.results import Results as Results
from nsflow.results import load as load
from nsflow.sampler import init as init
from nsflow.sampler import run as run
from nsflow.sampler import step as step
from nsflow.state import Problem as Problem
from nsflow.state import Settings as Settings
from nsflow.train import Training as Training
