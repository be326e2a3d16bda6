"""Every kernel that an op calls stands in both sets under one name, with the same parameters. Read from the sources, so that neither set is imported."""

import ast
import re
from pathlib import Path

import pytest

import slm_np

ROOT = Path(slm_np.__file__).resolve().parent
SETS = {name: ROOT / "kernels" / name for name in ("cpu", "gpu")}
CALL = re.compile(r"kernels_of\([^()]*\)\.(\w+)\(")
CALLED = sorted(
    {name for path in (ROOT / "ops").glob("*.py") for name in CALL.findall(path.read_text(encoding="utf-8"))}
    | {"adamw", "square_sum", "square_sum_blocks", "pack"}
)


def exported(folder):
    """{name: file} of what a set's __init__ names."""
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: folder / f"{node.module}.py"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def parameters(folder, name):
    """Names of the parameters of a kernel, in order."""
    tree = ast.parse(exported(folder)[name].read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return [one.arg for one in function.args.args]


def test_ops_call_kernels():
    assert len(CALLED) > 40 and {
        "rmsnorm_backward",
        "attention_forward",
        "embedding_backward",
        "selective_scan_partials",
        "accumulate",
    } < set(CALLED)


@pytest.mark.parametrize("name", CALLED)
def test_a_kernel_has_its_twin(name):
    assert parameters(SETS["gpu"], name) == parameters(SETS["cpu"], name)
