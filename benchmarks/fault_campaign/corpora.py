"""Odd corpora through prepare and train: `odd_corpora` of tests/data/odd_corpora.py, which says what each must give."""

import sys

import checkout

from fault_campaign.judges import UNAVAILABLE, Fault

TRIES = 300


def generator():
    """The function of the tests, or None if there is none."""
    folder = str(checkout.ROOT / "tests" / "data")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        from odd_corpora import odd_corpora
    except ModuleNotFoundError as error:
        if error.name != "odd_corpora":
            raise
        return None
    return odd_corpora


def cases(context):
    return [f"corpus {i}" for i in range(TRIES)]


def attempt(case, context, folder):
    if generator() is None:
        raise Fault(UNAVAILABLE, "tests/data/odd_corpora.py has no odd_corpora(n, seed)")
