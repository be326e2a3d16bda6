"""Imports point one way: the real import graph, with lazy imports and names in strings resolved."""

import ast
import re
from pathlib import Path

import pytest

import slm_np
import slm_np.data
import slm_np.kernels

ROOT = Path(slm_np.__file__).resolve().parent
# kernels and data lie beside the package in a checkout, and in it when it is installed.
FOLDERS = {package.__name__: Path(package.__path__[0]) for package in (slm_np, slm_np.kernels, slm_np.data)}

# A package may import those on lines above its own, and itself.
LAYERS = (
    {
        "arguments",
        "config",
        "presets",
        "errors",
        "streams",
        "dtypes",
        "paths",
        "progress",
        "ranks",
        "machine",
        "file_lock",
        "version",
        "words",
    },
    {"kernels.numpy", "kernels.cpu", "kernels.gpu", "data"},
    {"ops"},
    {"nn"},
    {"formats"},
    {"training", "inference"},
    {"cli"},
)
COMMANDS = len(LAYERS)  # everything else directly in slm_np


def modules_of(folders):
    """{dotted name: file} of the modules in {package: folder}."""
    found = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            name = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
            found[name.removesuffix(".__init__")] = path
    return found


def names_in_strings(tree):
    """Modules that strings name for an import: a whole string, or an import statement in it. Docstrings are prose."""
    prose = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
        if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            if re.fullmatch(r"\w+(\.\w+)+", node.value):
                yield node.value
            yield from re.findall(r"\b(?:from|import)\s+([\w.]+)", node.value)


def imports_of(name, path, modules):
    """The modules that one file imports, anywhere in it."""
    tree, package = (
        ast.parse(path.read_text(encoding="utf-8")),
        name if path.name == "__init__.py" else name.rpartition(".")[0],
    )
    targets = set(names_in_strings(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - node.level + 1] + ([base] if base else []))
            submodules = {f"{base}.{alias.name}" for alias in node.names} & set(modules)
            targets |= submodules or {base}
            if len(submodules) < len(node.names):
                targets.add(base)
    return {target for target in targets if target in modules and target != name}


def graph_of(folders):
    """{module: modules it imports}."""
    modules = modules_of(folders)
    return {name: imports_of(name, path, modules) for name, path in modules.items()}


def package_of(name):
    """(layer, package) of a module."""
    inner = name.partition(".")[2]
    for layer, packages in enumerate(LAYERS):
        for one in packages:
            if inner == one or inner.startswith(one + "."):
                return layer, one
    return COMMANDS, inner


def wrong_edges(graph):
    """Imports upwards, between packages of one layer, or of one command by another."""
    found = []
    for name, targets in graph.items():
        for target in targets:
            (layer, here), (other_layer, there) = package_of(name), package_of(target)
            leaves = layer == other_layer == 0
            facade = name.count(".") == 0 or name.endswith(".__main__")  # the package itself names its public parts
            if other_layer > layer or other_layer == layer and here != there and not leaves and not facade:
                found.append(f"{name} imports {target}")
    return sorted(found)


def cycles(graph):
    """The strongly connected components of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_imports_point_one_way():
    assert wrong_edges(graph_of(FOLDERS)) == []


def test_imports_form_no_cycle():
    assert cycles(graph_of(FOLDERS)) == []


def test_the_graph_holds_every_file():
    """Those of kernels and data included, each once, and edges that are known to exist."""
    graph = graph_of(FOLDERS)
    parent = ROOT if (ROOT / "kernels").is_dir() else ROOT.parent
    files = {path.resolve() for folder in (ROOT, parent / "kernels", parent / "data") for path in folder.rglob("*.py")}
    assert {path.resolve() for path in modules_of(FOLDERS).values()} == files
    assert len(graph) == len(files)
    assert "slm_np.kernels.cpu" in graph["slm_np.ops.device"]
    assert package_of("slm_np.train")[0] == COMMANDS and package_of("slm_np.kernels.gpu.norm") == (1, "kernels.gpu")


WAYS = {
    "plain": "import pkg.cli.flags\n",
    "from": "from pkg.cli import flags\n",
    "relative": "from ..cli import flags\n",
    "lazy": "def f():\n    from pkg.cli.flags import x\n",
    "importlib": "import importlib\nm = importlib.import_module('pkg.cli.flags')\n",
    "command": "import sys\ncommand = [sys.executable, '-m', 'pkg.cli.flags']\n",
    "code": "code = 'from pkg.cli.flags import run; run()'\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_an_import_upwards_is_found(way, tmp_path):
    root = tmp_path / "pkg"
    for folder in ("ops", "cli"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").write_text("")
    (root / "__init__.py").write_text('"""A package."""\n')
    (root / "ops" / "linear.py").write_text(WAYS[way])
    (root / "cli" / "flags.py").write_text("x = 1\n")
    assert "pkg.ops.linear imports pkg.cli.flags" in wrong_edges(graph_of({"pkg": root}))


def test_a_cycle_is_found(tmp_path):
    root = tmp_path / "pkg"
    (root / "nn").mkdir(parents=True)
    (root / "nn" / "a.py").write_text("import pkg.nn.b\n")
    (root / "nn" / "b.py").write_text("def f():\n    from pkg.nn import a\n")
    assert cycles(graph_of({"pkg": root})) == [["pkg.nn.a", "pkg.nn.b"]]
