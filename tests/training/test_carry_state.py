"""`--carry-state`: batches of consecutive windows, and a recurrent state that passes from one to the next."""

import numpy as np
import pytest
import small

from slm_np.data.batches import ContiguousOrder
from slm_np.data.tokens import Tokens
from slm_np.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = dict(pattern="M", positions="none", feed_forward="none", carry_state=True)


def test_each_row_reads_its_part_of_the_data_in_order():
    tokens = Tokens("train", np.arange(103, dtype=np.uint16))
    order, x, y = ContiguousOrder(tokens, 5, 4), np.zeros((4, 5), np.int32), np.zeros((4, 5), np.int32)
    assert order.n_windows == 5
    seen = []
    for index in range(6):
        order.batch(x, y, index)
        np.testing.assert_array_equal(y, x + 1)
        seen.append(x.copy())
    np.testing.assert_array_equal(np.concatenate(seen[:5], axis=1), np.arange(100).reshape(4, 25))
    np.testing.assert_array_equal(seen[5], seen[0])
    with pytest.raises(UserError, match="--carry-state cuts it into --batch-size 30 parts"):
        ContiguousOrder(tokens, 5, 30)


@pytest.mark.parametrize("pattern", ["M", "S"])
def test_a_resumed_run_has_the_same_weights_and_state(pattern, tmp_path):
    data = small.text_file(tmp_path, lines=12)  # so short that its parts start again
    settings = {**SETTINGS, "pattern": pattern}
    whole = small.trainer(data, tmp_path / "whole", **settings)
    assert 1 < whole.batches.n_windows < 12
    whole.train()
    part = small.trainer(data, tmp_path / "part", **settings)
    for _ in range(8):
        part.step()
    part.save()
    rest = small.trainer(data, **settings)
    small.resume(rest, tmp_path / "part")
    assert rest.states.memory.any()
    rest.train()
    np.testing.assert_array_equal(rest.model.parameters.weights, whole.model.parameters.weights)
    np.testing.assert_array_equal(rest.states.memory, whole.states.memory)


def test_the_state_is_cleared_when_the_data_starts_again(tmp_path):
    trainer = small.trainer(small.text_file(tmp_path, lines=12), **SETTINGS)
    cleared, n_windows = [], trainer.batches.n_windows
    for _ in range(2 * n_windows):
        before = trainer.states.memory.copy()
        trainer.load_batch(trainer.updates)
        cleared.append(not trainer.states.memory.any())
        trainer.states.memory[:] = before
        trainer.step()
    assert cleared == ([True] + [False] * (n_windows - 1)) * 2


def test_the_state_of_a_loss_that_is_not_finite_is_cleared(tmp_path):
    trainer = small.trainer(small.text_file(tmp_path), **SETTINGS)
    trainer.step()
    weights = trainer.model.parameters.weights
    kept = weights.copy()
    weights[:] = np.nan
    trainer.step()
    assert not trainer.states.memory.any()
    weights[:] = kept
    assert np.isfinite(trainer.step()[0])
