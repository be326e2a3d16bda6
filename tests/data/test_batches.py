"""Batches: random windows, shuffled epochs, and the permutation behind them."""

import tracemalloc

import numpy as np
from data_files import token_file
from data_files import tokens as tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_np.data.batches import EpochOrder, permute, random_batch
from slm_np.data.tokens import Tokens

quick = settings(max_examples=60, deadline=None)


def windows(B, T):
    """x, y (B, T) for a batch."""
    return np.full((B, T), -1, np.int32), np.full((B, T), -1, np.int32)


@quick
@given(
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(0, 30),
    st.integers(0, 2**63 - 1),
    st.integers(0, 9),
    st.integers(0, 10**12),
)
def test_a_random_batch_depends_on_seed_purpose_and_step_only(B, T, extra, seed, purpose, step):
    tokens = tokens_of(np.arange(T + 1 + extra) * 3)
    (x, y), (again_x, again_y) = windows(B, T), windows(B, T)
    random_batch(x, y, tokens, seed, purpose, step)
    np.random.seed(0)
    random_batch(*windows(3, T), tokens, seed, purpose, step + 1)
    random_batch(again_x, again_y, tokens, seed, purpose, step)
    assert (x == again_x).all() and (y == again_y).all()
    assert (y[:, :-1] == x[:, 1:]).all() and (x == x[:, :1] + 3 * np.arange(T)).all() and (y == x + 3).all()
    assert x.min() >= 0 and y.max() <= tokens.ids[-1]


def test_random_batches_differ_and_are_uniform_up_to_both_ends():
    tokens, T = tokens_of(range(14)), 4
    drawn = {}
    for key in ((seed, purpose, step) for seed in (1, 2) for purpose in (0, 1) for step in (0, 1, 2)):
        x, y = windows(64, T)
        random_batch(x, y, tokens, *key)
        drawn[x[:, 0].tobytes()] = key
    assert len(drawn) == 12
    x, y = windows(20000, T)
    random_batch(x, y, tokens, 7, 0, 0)
    counts = np.bincount(x[:, 0])
    assert len(counts) == 10 and counts.min() > 1800 and counts.max() < 2200  # mean 2000, standard deviation 42
    assert x.min() == 0 and y.max() == 13


def test_random_batches_are_the_same_on_every_machine():
    x, y = windows(4, 1)
    random_batch(x, y, tokens_of(range(50001)), 1337, 2, 1000)
    assert x[:, 0].tolist() == [3765, 46370, 14586, 48392]


def test_batches_allocate_nothing_large(tmp_path):
    tokens = Tokens("train", np.memmap(token_file(tmp_path / "t.bin", np.arange(200_000) % 1000), "<u2", "r"))
    x, y = windows(64, 1024)
    order = EpochOrder(tokens, 1024, 1)
    random_batch(x, y, tokens, 1, 1, 1), order.batch(x, y, 0)
    tracemalloc.start()
    try:
        random_batch(x, y, tokens, 1, 1, 2), order.batch(x, y, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000


@quick
@given(st.integers(1, 300), st.integers(0, 2**63 - 1))
def test_permute_is_a_permutation(n, seed):
    keys = np.random.default_rng(seed).integers(0, 2**64, 6, np.uint64)
    assert sorted(permute(np.arange(n), n, keys)) == list(range(n))


def test_permute_of_a_large_range_is_injective_and_uncorrelated():
    n = 3_000_000_000
    keys = np.arange(6, dtype=np.uint64)
    image = permute(np.arange(20000), n, keys)
    assert len(set(image.tolist())) == 20000 and image.min() >= 0 and image.max() < n
    assert abs(image.mean() / n - 0.5) < 0.01 and abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.03


@quick
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 5), st.integers(1, 7), st.integers(0, 2**40))
def test_an_epoch_visits_every_window_once(n, T, extra, B, seed):
    tokens = tokens_of(range(n * T + 1 + min(extra, T - 1)))
    order = EpochOrder(tokens, T, seed)
    assert order.n_windows == n
    seen, (x, y) = [], windows(B, T)
    for index in range(0, 3 * n, B):  # batches cross the ends of epochs
        order.batch(x, y, index)
        assert (y == x + 1).all() and (x == x[:, :1] + np.arange(T)).all() and (x[:, 0] % T == 0).all()
        seen += (x[:, 0] // T).tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_each_epoch_has_an_order_of_its_own():
    tokens = tokens_of(np.zeros(20001))
    order = EpochOrder(tokens, 10, 1)
    first, second = order.windows(np.arange(2000)), order.windows(np.arange(2000, 4000))
    other = EpochOrder(tokens, 10, 2).windows(np.arange(2000))
    straight = np.arange(2000)
    for a, b in ((first, straight), (second, straight), (first, second), (first, other)):
        assert (a == b).mean() < 0.01 and abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert (np.diff(first) == 1).mean() < 0.01
    assert (order.windows(np.arange(500, 600)) == first[500:600]).all()  # any row, without the rows before it
