"""Fuzzed calls of every public name of the library, right and wrong ones: `fuzz` of tests/fuzz_calls.py, in portions.

A call that ends the process is lost, a wrong argument that is accepted is undetected, any other failure is a failure.
"""

import importlib
import sys

import checkout

from fault_campaign.judges import FAILED, LOST, UNAVAILABLE, UNDETECTED, Fault, require

CALLS, PORTION = 10_000, 1000
TRIES = CALLS // PORTION
LIMIT_S = 1200
WEIGHT = PORTION  # calls that one try makes


def cases(context):
    return [f"{PORTION} calls from {start}" for start in range(context.seed, context.seed + TRIES)]


def fuzz():
    """The function of the tests. Unavailable without them, or without hypothesis."""
    folder = str(checkout.ROOT / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module("fuzz_calls").fuzz
    except ModuleNotFoundError as error:
        raise Fault(UNAVAILABLE, f"the module {error.name} is missing") from None


def attempt(case, context, folder):
    count, *_, start = case.split()
    found = fuzz()(int(count), int(start), timeout=LIMIT_S)
    require(not found["crashed"], LOST, f"the process ended: {found['crashed'][-400:]}")
    accepted = [failure for failure in found["failures"] if failure.endswith("is accepted")]
    require(not accepted, UNDETECTED, f"{len(accepted)} wrong calls: {accepted[:1]}")
    require(not found["failures"], FAILED, f"{len(found['failures'])} calls: {found['failures'][:1]}")
    require(found["tried"] == int(count), FAILED, f"only {found['tried']} calls were made")
