"""Training batches: what each kind visits, when sequences start again, and how many updates the settings ask for."""

import numpy as np
import pytest
import small

from slm_np.data.tokens import Tokens
from slm_np.errors import UserError
from slm_np.training.batches import ContiguousWindows, RandomWindows, ShuffledWindows

N, B, T = 101, 4, 5


@pytest.fixture
def split():
    return Tokens("train", np.arange(N, dtype=np.uint16))


def filled(batches, index):
    tokens, targets = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    batches.fill(tokens, targets, index)
    return tokens, targets


@pytest.fixture(params=["random", "shuffled", "contiguous"])
def batches(split, request):
    return {
        "random": RandomWindows(split, 1, 0),
        "shuffled": ShuffledWindows(split, T, B, 1),
        "contiguous": ContiguousWindows(split, T, B),
    }[request.param]


def test_a_batch_depends_on_its_index_only(batches):
    forwards = [filled(batches, i) for i in range(6)]
    for i in (4, 0, 5, 2):
        np.testing.assert_array_equal(filled(batches, i), forwards[i])
    for tokens, targets in forwards:
        np.testing.assert_array_equal(targets, tokens + 1)


def test_an_epoch_visits_every_window_once(split):
    for batches in (ShuffledWindows(split, T, B, 1), ContiguousWindows(split, T, B)):
        n = batches.n_windows // batches.windows_per_batch
        assert n == 5
        for epoch in range(2):
            tokens = np.concatenate([filled(batches, epoch * n + i)[0] for i in range(n)])
            assert sorted(tokens.ravel()) == list(range(N - 1))


def test_only_contiguous_windows_continue(split):
    contiguous = ContiguousWindows(split, T, B)
    assert [contiguous.restarts(i) for i in range(11)] == [i % 5 == 0 for i in range(11)]
    for i in range(4):
        np.testing.assert_array_equal(filled(contiguous, i)[0] + T, filled(contiguous, i + 1)[0])
    assert all(RandomWindows(split, 1, 0).restarts(i) for i in range(4))


def test_contiguous_windows_refuse_a_mask(split):
    masked = Tokens("train", split.ids, mask=np.ones(N, np.uint8))
    with pytest.raises(UserError, match="--carry-state is not supported with masked targets"):
        ContiguousWindows(masked, T, B)


@pytest.mark.parametrize(
    "changes, random, shuffled, contiguous",
    [
        (dict(max_iters=7), 7, 7, 7),
        (dict(epochs=2.0), None, 10, 10),
        (dict(epochs=2.0, grad_accumulation_steps=3), None, 4, 4),
        (dict(epochs=0.1), None, 1, 1),
    ],
)
def test_updates(split, changes, random, shuffled, contiguous):
    config = small.config("x", **changes).train
    if random is not None:
        assert RandomWindows(split, 1, 0).updates(config) == random
    assert ShuffledWindows(split, T, B, 1).updates(config) == shuffled
    assert ContiguousWindows(split, T, B).updates(config) == contiguous


def test_targets_are_counted_over_all_batches_of_an_update(split):
    tokens, targets = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    assert RandomWindows(split, 1, 0).count_targets(tokens, targets, range(3)) == 3 * B * T
    assert not tokens.any()  # without a mask nothing is read
    masked = Tokens("train", split.ids, mask=(np.arange(N) % 3 == 0).astype(np.uint8))
    batches = ShuffledWindows(masked, T, B, 1, end_of_text=None)
    expected = sum(int((filled(batches, i)[1] >= 0).sum()) for i in range(2, 5))
    assert 0 < batches.count_targets(tokens, targets, range(2, 5)) == expected < 3 * B * T
