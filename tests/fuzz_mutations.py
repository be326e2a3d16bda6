"""Remove one check of the library at a time and see whether the fuzz of `fuzz_calls` finds it.

The checks are found in the sources: every call of `arguments.FUNCTION` and of the checking methods of a model, and
every `raise` in the files of `RAISES`. A removed call becomes the conversion that it also is; a removed `raise` does
nothing. The changed function runs in a forked process, since it may crash.
"""

import ast
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import fuzz_calls
import numpy as np

import slm_np
import slm_np.data

PACKAGE, DATA = Path(slm_np.__file__).resolve().parent, Path(slm_np.data.__path__[0]).resolve()
# Files in which each `raise` is a check of an argument, and the functions if not all of them.
RAISES = {
    PACKAGE / "arguments.py": None,
    PACKAGE / "config.py": ("typed", "check"),
    PACKAGE / "nn" / "model.py": None,
    PACKAGE / "nn" / "parameters.py": None,
    DATA / "tokenizer.py": None,
}
METHODS = ("_ids", "_batch", "_states", "_dropout")  # of Model
TRIES, SECONDS = 40, 60  # calls and seconds for one check


class Unchecked:
    """What the functions of `slm_np.arguments` and the checking methods of a model convert, without any check."""

    def __getattr__(self, name):
        return lambda argument, value=None, *rest, **more: value

    def ids(self, name, value, vocab_size, shape, arrays=None, masked=False, also=None):
        found = np.ascontiguousarray(value).astype(np.int32)
        return found.reshape(shape) if also is not None and found.shape == also else found

    def _ids(self, name, value, shape, masked=False, also=None):
        return self.ids(name, value, None, shape, also=also)

    def _batch(self, tokens, targets):
        return self._ids("", tokens, None), self._ids("", targets, None)

    def _states(self, states, batch):
        return states

    def integers(self, name, value):
        return np.asarray(value).astype(np.int64).reshape(-1)

    def encoded(self, name, value):
        return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value

    def strings(self, name, value):
        return (value,) if isinstance(value, str) else tuple(value)

    def wholes(self, name, value):
        return tuple(value)

    def settings(self, name, value):
        return dict(value or {})

    def dtype(self, name, value, known):
        return np.dtype(value)

    def path(self, name, value, optional=False):
        return "" if value is None and optional else os.fsdecode(value)

    def paths(self, name, value, optional=False):
        if isinstance(value, (list, tuple)):
            return ",".join(map(os.fsdecode, value))
        return "" if value is None and optional else os.fsdecode(value)


class Site(NamedTuple):
    """One check: its file, its lines, its column and the name of its function."""

    path: Path
    line: int
    stop: int
    column: int
    function: str

    def __str__(self):
        text = self.path.read_text(encoding="utf-8").splitlines()[self.line - 1].strip()
        return f"{self.path.parent.name}/{self.path.name}:{self.line} {text}"


def is_check(node, path, function):
    """Whether a node of the function called `function` is a check."""
    if isinstance(node, ast.Raise):
        return path in RAISES and (RAISES[path] is None or function in RAISES[path])
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    of, name = node.func.value, node.func.attr
    if isinstance(of, ast.Name) and of.id == "arguments":
        return name[0] != "_" and not name.isupper() and name not in ("shown", "plain", "refusal", "limits")
    return path.name == "model.py" and isinstance(of, ast.Name) and of.id == "self" and name in METHODS


def functions_of(tree):
    """The functions of a module and of its classes, as nodes."""
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                yield inner


def sites():
    """Every check in the sources."""
    found = []
    for path in sorted({*PACKAGE.rglob("*.py"), *DATA.rglob("*.py")}):
        for function in functions_of(ast.parse(path.read_text(encoding="utf-8"))):
            found += [
                Site(path, node.lineno, node.end_lineno, node.col_offset, function.name)
                for node in ast.walk(function)
                if is_check(node, path, function.name)
            ]
    return found


class Removal(ast.NodeTransformer):
    """Remove the check at a site."""

    def __init__(self, site):
        self.site = site

    def here(self, node):
        return (node.lineno, node.end_lineno, node.col_offset) == (self.site.line, self.site.stop, self.site.column)

    def visit_Raise(self, node):
        return ast.copy_location(ast.Pass(), node) if self.here(node) else node

    def visit_Call(self, node):
        self.generic_visit(node)
        if self.here(node) and is_check(node, self.site.path, self.site.function):
            node.func.value = ast.copy_location(ast.Name("unchecked_arguments", ast.Load()), node.func.value)
        return node


def codes(code):
    """A code object and all in it."""
    yield code
    for constant in code.co_consts:
        if hasattr(constant, "co_consts"):
            yield from codes(constant)


def module_of(path):
    """The loaded module of a file, or None."""
    return next(
        (module for module in list(sys.modules.values()) if Path(getattr(module, "__file__", None) or ".") == path),
        None,
    )


def loaded_functions(module):
    """The functions of a module and of its classes."""
    for value in list(vars(module).values()):
        for one in list(vars(value).values()) if isinstance(value, type) else [value]:
            function = getattr(one, "__func__", None) or getattr(one, "fget", None) or one
            if hasattr(function, "__code__"):
                yield function


def remove(site):
    """Replace the function of a site in this process by the one without the check."""
    tree = Removal(site).visit(ast.parse(site.path.read_text(encoding="utf-8")))
    named = [code for code in codes(compile(tree, str(site.path), "exec")) if code.co_name == site.function]
    new = max((code for code in named if code.co_firstlineno <= site.line), key=lambda code: code.co_firstlineno)
    module = module_of(site.path)
    module.unchecked_arguments = Unchecked()
    for function in loaded_functions(module):
        old = function.__code__
        if (Path(old.co_filename), old.co_name, old.co_firstlineno) == (site.path, site.function, new.co_firstlineno):
            function.__code__ = new
            return
    raise LookupError(f"{site} is in no function that is loaded")


def refusals(world, found):
    """[(call, {(file, line)} on the stack of its UserError)] of the calls that are refused."""
    collected = []
    original = fuzz_calls.UserError.__init__

    def noted(error, *args):
        original(error, *args)
        lines = set()
        frame = sys._getframe(1)
        while frame is not None:
            lines.add((Path(frame.f_code.co_filename), frame.f_lineno))
            frame = frame.f_back
        collected.append(lines)

    fuzz_calls.UserError.__init__ = noted
    try:
        result = []
        for call in found:
            collected.clear()
            problem = fuzz_calls.failure(world, call)
            if problem:
                raise AssertionError(f"{call}: {problem}")
            if collected:
                result.append((call, set().union(*collected)))
        return result
    finally:
        fuzz_calls.UserError.__init__ = original


def survives(world, site, tried):
    """Whether the Calls `tried` end right without the check at a site. A crash or a hang is no right end."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            signal.alarm(SECONDS)
            remove(site)
            status = 1 if any(fuzz_calls.failure(world, call) for call in tried) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 3:
        raise AssertionError(f"{site} cannot be removed")
    return status == 0


def survivors(times):
    """(number of checks, [sentence about each check that no call misses]), see `every_wrong_value`"""
    found, calls = [], fuzz_calls.every_wrong_value(times)
    with tempfile.TemporaryDirectory() as folder:
        world = fuzz_calls.World(folder)
        refused = refusals(world, calls)
        checks = sites()
        for site in checks:
            lines = {(site.path, line) for line in range(site.line, site.stop + 1)}
            tried = [call for call, stack in refused if stack & lines]
            tried = tried[:: -(-len(tried) // TRIES) or 1]
            if not tried:
                found.append(f"{site}: no call is refused here")
            elif survives(world, site, tried):
                found.append(f"{site}: {len(tried)} calls that it refuses end right without it")
    return len(checks), found


if __name__ == "__main__":
    print(json.dumps(survivors(int(sys.argv[1]))))
