"""The order of the packages, no circle within one, and one home for each heavy dependency, read from the imports."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nsflow

ROOT = Path(nsflow.__file__).parent
# A package imports only from rows above its own.
LAYERS = (
    ("numerics",),
    ("importance",),
    ("densities", "results"),
    ("prior", "flow"),
    ("likelihood", "diffusion"),
    ("modes", "proposals"),
    ("moves",),
    ("nested",),
    ("checkpoint", "adapters"),
    ("merge", "sampler"),
    ("cli",),
    ("__main__",),
)
HOMES = {
    "optax": {"flow.training"},
    "flax": {"flow.velocity"},
    "numpyro": {"prior.quantile", "prior.parameter", "prior.transform", "prior.conversion", "prior.prior"},
    "rich": {"nested.progress"},
    "jinja2": {"results.html"},
    "matplotlib": {"results.plots", "results.drawing"},
    "anesthetic": {"results.results", "results.plots", "results.drawing", "adapters.blackjax.result"},
    "pandas": {"results.results"},
    "sklearn": {"proposals.estimators"},
    "safetensors": {"checkpoint.manifest"},
    "flowjax": {"adapters.flowjax"},
    "blackjax": {
        "moves.inner_kernel",
        "adapters.blackjax.kernel",
        "adapters.blackjax.result",
        "adapters.blackjax.modes",
    },
}
INSIDE_FUNCTIONS = {"anesthetic", "pandas", "sklearn", "rich", "jinja2"}  # global state, slow, or not installed
OUTSIDE = {"adapters.blackjax.result": {"anesthetic"}}  # the adapter is imported by those who asked for it
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}
ROW = {package: row for row, packages in enumerate(LAYERS) for package in packages}


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
    package = name.split(".")[0]
    for dotted in imports(tree):
        first, *rest = dotted.split(".")
        if first == "nsflow":
            is_inside = rest[0] == package or ROW.get(rest[0], len(LAYERS)) < ROW[package]
        else:
            is_inside = first != ""
        if not is_inside or name not in HOMES.get(first, {name}):
            yield dotted
    yield from (
        dotted for dotted in imports(top_level) if dotted.split(".")[0] in INSIDE_FUNCTIONS - OUTSIDE.get(name, set())
    )


def circle(sources):
    """A circle among modules that import one another, given their sources by dotted name; none if there is none."""
    graph = {}
    for name, source in sources.items():
        dotted = [d.removeprefix("nsflow.") for d in imports(ast.parse(source)) if d.startswith("nsflow.")]
        targets = {d if d in sources else d.rpartition(".")[0] for d in dotted}
        graph[name] = {t for t in targets & set(sources) if t != name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_every_package_has_a_place():
    assert {name.split(".")[0] for name in MODULES} == set(ROW)


@pytest.mark.parametrize("name", MODULES)
def test_packages_import_downwards_and_dependencies_have_one_home(name):
    assert list(forbidden(name, MODULES[name].read_text())) == []


def test_no_modules_import_each_other():
    assert circle({name: path.read_text() for name, path in MODULES.items() if path.stem != "__init__"}) is None


def test_importing_the_package_imports_only_itself():
    """The front door re-exports and is never an import of the modules behind it; it does not import the adapters."""
    tree = ast.parse((ROOT / "__init__.pyi").read_text())
    assert {dotted.lstrip(".").split(".")[0] for dotted in imports(tree)} <= set(ROW) - {"adapters", "cli"}


@pytest.mark.parametrize(
    "source",
    [
        "from nsflow.nested.state import State",
        "from nsflow import diffusion",
        "from .path import LinearPath",
        "import nsflow.adapters.blackjax",
        "def late():\n    from nsflow.sampler import run",
        "from flax import nnx",
        "def late():\n    import blackjax",
    ],
)
def test_forbidden_imports_are_seen(source):
    assert len(list(forbidden("flow.training", source))) == 1
    assert list(forbidden("flow.training", "import optax\nfrom nsflow.flow.path import LinearPath")) == []


def test_circles_are_seen():
    sources = {"a.b": "from nsflow.a.c import x", "a.c": "from nsflow.a import d", "a.d": "import nsflow.a.b"}
    assert set(circle(sources)) == {"a.b", "a.c", "a.d"}
    assert circle({**sources, "a.d": ""}) is None


def test_imports_of_global_state_belong_inside_functions():
    assert list(forbidden("results.results", "import anesthetic")) == ["anesthetic"]
    assert list(forbidden("results.results", "def late():\n    import anesthetic")) == []
