"""A vocabulary of 151,936 tokens, as Qwen's: logits exist for one chunk of rows at a time."""

import tracemalloc

import numpy as np
import pytest
from configs import config_of

from slm_np.dtypes import BF16
from slm_np.errors import UserError
from slm_np.nn import head
from slm_np.nn.arena import planned_bytes
from slm_np.nn.dropout import model_dropout
from slm_np.nn.model import Model, plan
from slm_np.ops.device import CPU
from slm_np.training.optimizer import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")
V, D = 151936, 1024
CONFIG = config_of(vocab_size=V, block_size=1024, n_layer=1, n_embd=D, n_head=4, n_hidden=D)
BUDGET = 128 << 20  # bytes of a chunk's logits


@pytest.mark.parametrize("dtype", [None, BF16], ids=["fp32", "bf16"])
def test_the_arena_has_no_logits_of_all_tokens(dtype):
    """With 4,096 more tokens, it grows by less than a sixth of their logits."""
    few, many = (planned_bytes(plan(CONFIG, batch, 1024), np.float32, dtype) for batch in (4, 8))
    assert many - few < 4 * 4096 * V / 6
    sizes = {r.name: r.shape[0] * r.shape[1] for r in plan(CONFIG, 8, 1024) if "logits" in r.name}
    assert set(sizes) == {"head.logits", "head.dlogits"}
    assert BUDGET / 2 < 4 * sizes["head.logits"] <= BUDGET


@pytest.mark.parametrize("size, rows", [(11, (16 << 20) // 44), (8192, 512), (50257, 512), (65536, 512)])
def test_smaller_vocabularies_keep_their_chunks(size, rows):
    """The bits of a run depend on them."""
    assert head.chunk_rows(size) == rows


def test_chunks_of_the_largest_vocabularies_have_enough_rows():
    assert [head.chunk_rows(size) for size in (262144, 1 << 20, 1 << 24)] == [128, 64, 64]


def test_logits_that_do_not_fit_are_refused(monkeypatch):
    model = Model(config_of(vocab_size=256, block_size=64, n_layer=1, n_embd=8, n_head=1))
    monkeypatch.setattr(CPU, "free_bytes", lambda: 1 << 18)
    with pytest.raises(UserError, match="the matrix of logits of 512 tokens needs .* GiB of memory"):
        model.logits(np.zeros((8, 64), int))


@pytest.mark.slow
def test_an_update_with_two_chunks():
    """Rows of the embedding that no token reads get the gradient of plain NumPy."""
    if CPU.free_bytes() is not None and CPU.free_bytes() < 6 << 30:
        pytest.skip("needs 6 GiB of memory")
    model = Model(CONFIG, 1)
    tokens, targets = np.random.default_rng(0).integers(0, V // 2, (2, 1, 300)).astype(np.int32)
    model.loss_and_gradient(tokens[:, :8], targets[:, :8])
    model.parameters.gradients.fill(0)

    tracemalloc.start()
    try:
        loss = model.loss_and_gradient(tokens, targets)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    chunk = model.activations.shared["head.logits"]
    assert chunk.shape[0] < 300 < 2 * chunk.shape[0]
    assert peak < model.activations.arena.n_bytes + (1 << 20)

    normed = model.forward(model.plan(1, 300), tokens, model_dropout(CONFIG))
    embedding, sample = model.parameters.weight["embedding.weight"], np.r_[targets[0, :20], V - 20 : V]
    logits = normed @ embedding.T
    lse = np.log(np.exp(logits).sum(1, dtype=np.float64))
    assert loss == pytest.approx((lse - logits[np.arange(300), targets[0]]).mean(), rel=1e-5)
    dlogits = (np.exp(logits[:, sample] - lse[:, None]) - (targets[0][:, None] == sample)) / 300
    read = np.isin(sample, tokens)
    expected, found = dlogits.T @ normed, model.parameters.gradient["embedding.weight"][sample]
    np.testing.assert_allclose(found[~read], expected[~read], rtol=0, atol=1e-5 * np.abs(expected).max())
    assert (~read).sum() > 30 and np.isfinite(AdamW(model.parameters).step(1e-3))
