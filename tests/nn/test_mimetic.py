"""`--init mimetic`: attention that copies before the first update."""

import copy
import pickle

import numpy as np
import pytest

from slm_np import Model, ModelConfig

SIZES = dict(vocab_size=40, block_size=32, n_layer=1, n_embd=48, positions="none", feed_forward="none", head="tied")
HEADS = {
    "equal": dict(n_head=4),
    "grouped": dict(n_head=6, n_kv_head=2, head_dim=8),
    "one key-value head": dict(n_head=3, n_kv_head=1, head_dim=16),
    "wider than the model": dict(n_head=4, head_dim=16),
}


def attention(config, seed=1):
    """(W_v of the query heads (D, H, w), W_o (H, w, D)) of the first layer."""
    weights = Model(config, seed=seed).parameters.weight
    D, H, K, w = config.n_embd, config.n_head, config.n_kv_head, config.head_dim
    v = weights["layers.0.attention.qkv.weight"].reshape(D, H + 2 * K, w)[:, H + K :]
    return np.repeat(v, H // K, axis=1), weights["layers.0.attention.output.weight"].reshape(H, w, D)


@pytest.mark.parametrize("name", HEADS)
def test_values_and_output_together_are_the_identity_that_their_width_allows(name):
    config = ModelConfig(**SIZES, **HEADS[name], init="mimetic", init_std=1e-6)
    v, output = attention(config)
    rank = min(config.n_embd, config.n_kv_head * config.head_dim)
    assert np.allclose(np.einsum("dhw,hwe->de", v, output), np.diag(np.arange(config.n_embd) < rank), atol=1e-4)


def test_the_rest_is_the_normal_initialization():
    normal, mimetic = (Model(ModelConfig(**SIZES, n_head=4, init=init), seed=3) for init in ("normal", "mimetic"))
    for name, weight in normal.parameters.weight.items():
        added = mimetic.parameters.weight[name] - weight
        if "attention" not in name:
            assert not added.any(), name
        else:
            assert set(np.round(np.unique(added), 5)) <= {0.0, 1.0}, name


def test_tokens_of_the_context_are_likelier_before_the_first_update():
    def likelier(init):
        """By how much more, on average, a token of the context is expected than one that is not in it."""
        model = Model(ModelConfig(**SIZES, n_head=4, init=init), seed=5)
        tokens = np.random.default_rng(0).permuted(np.tile(np.arange(20, dtype=np.int32), (8, 1)), axis=1)
        logits = model.logits(tokens)[:, -1]
        # The residual connection favors the last token anyway, so it does not count.
        seen = np.ones_like(logits, bool)
        seen[:, 20:] = False
        last = np.zeros_like(seen)
        last[np.arange(8), tokens[:, -1]] = True
        return logits[seen & ~last].mean() - logits[~seen].mean(), logits.std()

    difference, spread = likelier("mimetic")
    assert difference > 0.3 * spread
    difference, spread = likelier("normal")
    assert abs(difference) < 0.3 * spread


def test_a_last_mixer_that_gives_the_logits():
    config = ModelConfig(**SIZES | dict(head="none", residual=False), n_head=4, init="mimetic", init_std=1e-6)
    output = Model(config, seed=1).parameters.weight["layers.0.attention.output.weight"]
    assert np.allclose(output, np.eye(48, 40), atol=1e-4)


def test_models_can_be_copied_and_pickled():
    model = Model(ModelConfig(**SIZES, n_head=4, init="mimetic"), seed=1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.parameters.weights, model.parameters.weights)
