"""Continuous normalising flows: path, objective, velocity, training, and the exact density of the discrete map."""

from nsflow.flow.coupling import AbstractCoupling as AbstractCoupling
from nsflow.flow.coupling import Independent as Independent
from nsflow.flow.coupling import Sinkhorn as Sinkhorn
from nsflow.flow.flow import Flow as Flow
from nsflow.flow.flow import FlowInfo as FlowInfo
from nsflow.flow.flow import fit as fit
from nsflow.flow.maximum_likelihood import MaximumLikelihood as MaximumLikelihood
from nsflow.flow.objective import AbstractFlowObjective as AbstractFlowObjective
from nsflow.flow.objective import AbstractObjective as AbstractObjective
from nsflow.flow.objective import FlowMatching as FlowMatching
from nsflow.flow.objective import Regression as Regression
from nsflow.flow.path import AbstractPath as AbstractPath
from nsflow.flow.path import LinearPath as LinearPath
from nsflow.flow.path import TrigonometricPath as TrigonometricPath
from nsflow.flow.training import Training as Training
from nsflow.flow.training import TrainingInfo as TrainingInfo
from nsflow.flow.velocity import Architecture as Architecture
