"""Drop-in for blackjax's nested samplers, whose proposal learns while the run goes on."""

from nsflow.adapters.blackjax.kernel import UpdateInfo as UpdateInfo
from nsflow.adapters.blackjax.kernel import as_top_level_api as as_top_level_api
from nsflow.adapters.blackjax.kernel import build_kernel as build_kernel
from nsflow.adapters.blackjax.kernel import finalise as finalise
from nsflow.adapters.blackjax.kernel import init as init
from nsflow.adapters.blackjax.kernel import retrain as retrain
from nsflow.adapters.blackjax.modes import add_modes as add_modes
from nsflow.adapters.blackjax.modes import find_lost_modes as find_lost_modes
from nsflow.adapters.blackjax.result import LostMode as LostMode
from nsflow.adapters.blackjax.result import NestedResult as NestedResult
from nsflow.adapters.blackjax.result import nested_samples as nested_samples
from nsflow.moves.inner_kernel import IndependenceMH as IndependenceMH
from nsflow.moves.inner_kernel import LatentSlice as LatentSlice
from nsflow.moves.inner_kernel import Mixture as Mixture
from nsflow.moves.inner_kernel import Rejection as Rejection
from nsflow.moves.learner import Learner as Learner
