"""Fuzzed calls of every public name of the library: `fuzz` of tests/test_fuzz.py, in portions."""

import importlib
import sys

import checkout

from fault_campaign import children
from fault_campaign.judges import FAILED, LOST, UNAVAILABLE, UNDETECTED, Fault, require

CALLS, PORTION = 10_000, 100
TRIES = CALLS


def cases(context):
    return [f"{PORTION} calls from {start}" for start in range(0, CALLS, PORTION)]


def fuzz():
    """The function of the tests, or None if there is none."""
    for folder in (checkout.ROOT / "tests",):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module("test_fuzz"), "fuzz", None)
    except ModuleNotFoundError as error:
        if error.name != "test_fuzz":
            raise
        return None


def attempt(case, context, folder):
    count, *_, start = case.split()
    function = fuzz()
    if function is None:
        raise Fault(UNAVAILABLE, "tests/test_fuzz.py has no fuzz(n, seed)")
    result = children.forked_call(lambda: function(int(count), int(start) + context.seed), folder, limit=300)
    require(result.status >= 0, LOST, f"the process ended with signal {-result.status}: {result.tail()}")
    require("silent" not in result.err, UNDETECTED, result.tail())
    require(result.status == 0 and not result.late and not result.hung, FAILED, result.tail())
