"""Measure how the code of nsflow is laid out: `python tools/measure.py [--json] [--list WHAT] [ROOT]`.

Everything is read from syntax trees; nothing is imported. A unit is what lies directly in `nsflow/`: a package, or a
module. The goals are in `tests/test_measure.py`.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

LONG, TOO_LONG = 40, 50  # lines of a function without its docstring
LARGE = 250  # lines of a module
BENCHMARKS = re.compile(
    r"rosenbrock|mixture-5|log-?gamma|eggbox|gauss-\d|(shells|funnel|bend|plateau|corner|cauchy|slab|noisy)-\d"
    r"|two shells|\d-d shells|skilling|neal's funnel|frequencies-\d|banana|correlated-\d",
    re.IGNORECASE,
)
ROOT = Path(__file__).resolve().parent.parent


class Tree:
    """The modules of one checkout.

    Args:
        root: Folder that holds `nsflow/`.
    """

    def __init__(self, root: Path = ROOT) -> None:
        package = root / "nsflow"
        paths = sorted(package.rglob("*.py"))
        self.root = root
        self.texts = {".".join(path.relative_to(package).with_suffix("").parts): path.read_text() for path in paths}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}

    def units(self) -> set[str]:
        """Packages and modules that lie directly in `nsflow/`."""
        return {name.split(".")[0] for name in self.trees if name != "__init__"}

    def packages(self) -> list[str]:
        """Units that are folders."""
        return sorted(
            name.removesuffix(".__init__") for name in self.trees if name.count(".") == 1 and "__init__" in name
        )

    def arrows(self) -> set[tuple[str, str]]:
        """Pairs of units of which the first imports from the second."""
        units, found = self.units(), set()
        for name, tree in self.trees.items():
            unit = name.split(".")[0]
            if unit != "__init__":
                targets = {dotted.split(".")[1] for dotted in imports(tree) if dotted.startswith("nsflow.")}
                found |= {(unit, target) for target in targets & units if target != unit}
        return found

    def floors(self) -> dict[str, int]:
        """Floor of each unit: one above the highest that it imports from; empty where units form a circle."""
        below: dict[str, set[str]] = {unit: set() for unit in self.units()}
        for unit, target in self.arrows():
            below[unit].add(target)
        try:
            order = list(TopologicalSorter(below).static_order())
        except CycleError:
            return {}
        floors: dict[str, int] = {}
        for unit in order:
            floors[unit] = 1 + max((floors[target] for target in below[unit]), default=0)
        return floors

    def circle(self) -> list[str]:
        """Units that import one another in a circle; empty if there is none."""
        below: dict[str, set[str]] = {unit: set() for unit in self.units()}
        for unit, target in self.arrows():
            below[unit].add(target)
        try:
            TopologicalSorter(below).prepare()
        except CycleError as error:
            return list(error.args[1])
        return []

    def upward(self) -> list[tuple[str, str]]:
        """Arrows to a unit on the same row of `LAYERS` in `tests/test_layers.py`, or on one that comes later."""
        rows = declared_rows(self.root / "tests" / "test_layers.py")
        return sorted((a, b) for a, b in self.arrows() if a in rows and b in rows and rows[b] >= rows[a])

    def fields(self, wanted: str) -> int | None:
        """Number of fields of a class; none where there is no such class."""
        for _, node in self.classes():
            if node.name == wanted:
                return sum(isinstance(item, ast.AnnAssign) for item in node.body)
        return None

    def classes(self) -> Iterator[tuple[str, ast.ClassDef]]:
        """Each class at the top of a module, with the module's name."""
        for name, tree in self.trees.items():
            yield from ((name, node) for node in tree.body if isinstance(node, ast.ClassDef))

    def functions(self) -> Iterator[tuple[str, ast.FunctionDef]]:
        """Each function, method and inner function, with its module's name."""
        for name, tree in self.trees.items():
            yield from ((name, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))

    def takes_state(self) -> list[str]:
        """Functions with a parameter that is a whole `State`."""
        return sorted(
            f"{name}.{node.name}"
            for name, node in self.functions()
            if any(
                argument.annotation is not None and ast.unparse(argument.annotation).strip("'\"") == "State"
                for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            )
        )

    def constants(self) -> list[str]:
        """Numbers, and tuples of numbers, that have a name at the top of a module."""
        return sorted(
            f"{name}.{target} = {ast.unparse(value)}"
            for name, tree in self.trees.items()
            for target, value in named_values(tree.body)
            if is_number(value)
        )

    def long_functions(self, limit: int) -> list[str]:
        """Functions of more lines than that, their docstrings not counted."""
        return sorted(f"{name}.{node.name} {size(node)}" for name, node in self.functions() if size(node) > limit)

    def same_names(self) -> dict[str, list[str]]:
        """Names of classes that several modules define, with these modules."""
        homes: dict[str, list[str]] = {}
        for name, node in self.classes():
            homes.setdefault(node.name, []).append(name)
        return {name: modules for name, modules in sorted(homes.items()) if len(modules) > 1}

    def large_modules(self) -> list[str]:
        """Modules of more lines than a reader should have to hold."""
        sizes = {name: len(text.splitlines()) for name, text in self.texts.items()}
        return sorted(f"{name} {lines}" for name, lines in sizes.items() if lines > LARGE)

    def named_benchmarks(self) -> list[str]:
        """Lines that name a problem of the benchmarks."""
        return [
            f"{name}:{number}: {line.strip()}"
            for name, text in self.texts.items()
            for number, line in enumerate(text.splitlines(), 1)
            if BENCHMARKS.search(line)
        ]

    def summary(self) -> dict[str, int | None]:
        """Every number that this tool knows."""
        return {
            "files": len(self.trees),
            "files directly in nsflow/": sum("." not in name for name in self.trees),
            "packages": len(self.packages()),
            "floors": max(self.floors().values(), default=None),
            "arrows": len(self.arrows()),
            "upward arrows": len(self.upward()),
            "units in a circle": len(set(self.circle())),
            "fields of State": self.fields("State"),
            "fields of Ledger": self.fields("Ledger"),
            "functions that take State whole": len(self.takes_state()),
            "module-level numeric constants": len(self.constants()),
            f"functions above {LONG} lines": len(self.long_functions(LONG)),
            f"functions above {TOO_LONG} lines": len(self.long_functions(TOO_LONG)),
            "class names with several homes": len(self.same_names()),
            f"modules above {LARGE} lines": len(self.large_modules()),
            "lines that name a benchmark": len(self.named_benchmarks()),
        }


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def declared_rows(path: Path) -> dict[str, int]:
    """Row of each unit in the order that the test of layers declares; a row may be one name or several."""
    if not path.exists():
        return {}
    for target, value in named_values(ast.parse(path.read_text()).body):
        if target == "LAYERS":
            rows = ast.literal_eval(value)
            return {name: i for i, row in enumerate(rows) for name in ((row,) if isinstance(row, str) else row)}
    return {}


def named_values(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Names that statements assign, with their values; of tuples, one by one."""
    for node in body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name):
            yield target.id, value
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            yield from (
                (name.id, item)
                for name, item in zip(target.elts, value.elts, strict=False)
                if isinstance(name, ast.Name)
            )


def is_number(node: ast.expr) -> bool:
    """Whether an expression is made of numbers alone, infinities and pi among them."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | complex) and not isinstance(node.value, bool)
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    if isinstance(node, ast.Tuple):
        return bool(node.elts) and all(is_number(item) for item in node.elts)
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in ("np.inf", "np.pi", "math.inf", "math.pi", "jnp.inf", "jnp.pi")
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        return name.split(".")[0] in ("np", "math", "float", "int") and all(is_number(item) for item in node.args)
    return False


def size(node: ast.FunctionDef) -> int:
    """Lines of a function from its `def` on, its docstring not counted."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def lists(tree: Tree) -> dict[str, Iterable[object]]:
    """What lies behind the numbers."""
    return {
        "arrows": sorted(tree.arrows()),
        "upward": tree.upward(),
        "circle": tree.circle(),
        "state": tree.takes_state(),
        "constants": tree.constants(),
        "long": tree.long_functions(LONG),
        "names": tree.same_names().items(),
        "large": tree.large_modules(),
        "benchmarks": tree.named_benchmarks(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the numbers, or one of the lists behind them."""
    parser = argparse.ArgumentParser(description="Measure how the code of nsflow is laid out.")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="a checkout (default: this one)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--list", choices=sorted(lists(Tree())), help="what lies behind a number, one a line")
    options = parser.parse_args(arguments)
    tree = Tree(options.root)
    if options.list:
        print(*lists(tree)[options.list], sep="\n")
    elif options.json:
        print(json.dumps(tree.summary(), indent=1))
    else:
        for name, value in tree.summary().items():
            print(f"{name:<34}{'-' if value is None else value:>6}")


if __name__ == "__main__":
    main(sys.argv[1:])
