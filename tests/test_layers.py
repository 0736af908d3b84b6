"""The order of the modules, and one home for each heavy dependency, read from the imports."""

import ast
from pathlib import Path

import pytest

import nsflow

ROOT = Path(nsflow.__file__).parent
# Each imports only from those before it.
ORDER = (
    "storable", "arithmetic", "precision", "arguments", "shapes", "declaration", "drawing", "interrupt", "coordinate",
    "normal_score", "quantile", "parameter", "simplex", "discrete", "periodic", "failure", "cube", "distribution",
    "prior", "batch", "workers", "host", "journal", "likelihood", "gaussian", "modes",
    "base", "pushforward", "path", "schedule", "process", "coupling", "ode",
    "objective", "score_matching", "action_matching", "maximum_likelihood", "velocity", "train", "flow",
    "energy", "langevin", "sde", "proposal", "triangular", "surrogate", "ellipsoids", "pool", "online",
    "evidence", "kernels", "wide", "estimator", "thinning", "points", "straightening", "fresh", "state", "progress",
    "components", "search", "scouting", "conflict", "ladder", "ridges", "posterior", "frozen",
    "volumes", "files", "versions", "results", "summary", "start", "codec",
    "manifest", "identity", "integrity", "checkpoint",
    "merge", "sampler", "plots", "diagnostics", "tables", "report", "terminal", "__main__",
)  # fmt: skip
HOMES = {
    "optax": {"train"},
    "flax": {"velocity"},
    "numpyro": {"quantile", "parameter", "cube", "distribution", "prior"},
    "rich": {"progress"},
    "jinja2": {"report"},
    "matplotlib": {"plots", "drawing"},
    "anesthetic": {"results", "plots", "drawing"},
    "pandas": {"results"},
    "sklearn": {"estimator"},
    "safetensors": {"manifest"},
    "flowjax": set(),
    "blackjax": set(),
}
INSIDE_FUNCTIONS = {
    "anesthetic",
    "pandas",
    "sklearn",
    "rich",
    "jinja2",
}  # global state, a second, or may not be installed


def imports(tree):
    """Dotted names that a tree imports, relative imports as they are written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def forbidden(name, source):
    """Imports that a module of this name and source must not have."""
    tree = ast.parse(source)
    top_level = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    before = ORDER[: ORDER.index(name)]
    for dotted in imports(tree):
        first, *rest = dotted.split(".")
        inside = first == "nsflow" and rest[0] in before
        if (first in ("nsflow", "") and not inside) or name not in HOMES.get(first, {name}):
            yield dotted
    yield from (dotted for dotted in imports(top_level) if dotted.split(".")[0] in INSIDE_FUNCTIONS)


def test_every_module_has_a_place_in_the_order():
    assert {path.stem for path in ROOT.glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("name", ORDER)
def test_modules_import_downwards_and_dependencies_have_one_home(name):
    assert list(forbidden(name, (ROOT / f"{name}.py").read_text())) == []


def test_importing_the_package_imports_only_itself():
    """The front door re-exports and is never an import of the modules behind it; nothing imports the adapters."""
    tree = ast.parse((ROOT / "__init__.pyi").read_text())
    assert {dotted.lstrip(".").split(".")[0] for dotted in imports(tree)} <= set(ORDER)


@pytest.mark.parametrize(
    "source",
    [
        "from nsflow.flow import Flow",
        "from nsflow import train",
        "from .path import LinearPath",
        "import nsflow.adapters.blackjax",
        "def late():\n    from nsflow.sampler import run",
        "from flax import nnx",
        "def late():\n    import blackjax",
    ],
)
def test_forbidden_imports_are_seen(source):
    assert len(list(forbidden("train", source))) == 1
    assert list(forbidden("train", "import optax\nfrom nsflow.path import LinearPath")) == []


def test_imports_of_global_state_belong_inside_functions():
    assert list(forbidden("results", "import anesthetic")) == ["anesthetic"]
    assert list(forbidden("results", "def late():\n    import anesthetic")) == []
