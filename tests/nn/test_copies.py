"""Copies of models, optimizers, decoders and corpora, by copy and by pickle: independent, with the same bits."""

import copy
import pickle

import numpy as np
import pytest
import small

from slm_np import AdamW, Decoder, Model, ModelConfig, SamplingConfig, TrainConfig, UserError, load, load_corpus
from slm_np.data import growing
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.data.char_tokenizer import CharTokenizer
from slm_np.data.plain_bpe import PlainBPE
from slm_np.dtypes import BF16
from slm_np.inference.decoder import uncompiled_step
from slm_np.ops.device import CPU

pytestmark = pytest.mark.usefixtures("one_thread")
V, B, T = 256, 2, 8
WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
MODELS = {
    "attention": dict(n_head=2),
    "hybrid": dict(n_layer=2, pattern="MS", head="mlp", norm="layernorm", bias=True),
    "learned": dict(n_head=2, positions="learned", head="linear"),
}


@pytest.fixture(params=WAYS)
def copied(request):
    return WAYS[request.param]


def made(name="attention", **more):
    return Model(ModelConfig(**dict(vocab_size=V, block_size=T, n_layer=1, n_embd=16) | MODELS[name]), seed=3, **more)


def batch(seed=0):
    return np.random.default_rng(seed).integers(0, V, (2, B, T))


def train(model, optimizer, seed=0):
    """Everything that an update can change."""
    loss = model.loss_and_gradient(*batch(seed), key=(seed,))
    gradients, norm = model.parameters.gradients.copy(), optimizer.step()
    return loss, norm, gradients.tobytes(), model.parameters.weights.tobytes(), model.loss(*batch(seed))


@pytest.mark.parametrize("compute_dtype", [None, pytest.param(BF16, marks=pytest.mark.slow)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_and_its_optimizer(name, compute_dtype, copied):
    model = made(name, compute_dtype=compute_dtype)
    optimizer = AdamW(model.parameters, 0.01)
    train(model, optimizer)
    model.loss_and_gradient(*batch(1))  # gradients that a copy must have, too
    if copied is copy.copy:
        other = copied(model)
        copied_optimizer = AdamW(other.parameters, 0.01)
        copied_optimizer.updates = optimizer.updates
        for name, moment in optimizer.state().items():
            copied_optimizer.state()[name][...] = moment
    else:
        other, copied_optimizer = copied((model, optimizer))
    assert copied_optimizer.parameters is other.parameters and other.device is CPU
    before = other.parameters.weights.copy()
    expected = train(model, optimizer, 2)
    np.testing.assert_array_equal(other.parameters.weights, before)  # independent
    assert train(other, copied_optimizer, 2) == expected
    assert all(np.shares_memory(view, other.parameters.weights) for view in other.parameters.weight.values())


def test_a_copy_of_a_full_precision_model_shares_weights_with_the_copy_of_its_model(copied):
    model = made()
    full = copied(model.full_precision())
    assert full.original is not model and full.parameters.weights is full.original.parameters.weights
    assert full.loss(*batch()) == model.full_precision().loss(*batch())


def test_a_copied_optimizer_keeps_its_model():
    model = made()
    optimizer = AdamW(model.parameters)
    train(model, optimizer)
    other = copy.copy(optimizer)
    assert other.parameters is model.parameters and not np.shares_memory(other.mean, optimizer.mean)
    np.testing.assert_array_equal(other.mean, optimizer.mean)


@pytest.mark.parametrize("make_step", [None, uncompiled_step], ids=["fastest", "generic"])
@pytest.mark.parametrize("name", MODELS)
def test_a_decoder_continues_its_sequence(name, make_step, copied):
    decoder, tokens = Decoder(made(name), B, make_step), batch()[0]
    decoder.read(tokens[:, :3])
    decoder.step(tokens[:, 3])
    other = copied(decoder)
    for position in range(4, 2 * T):  # beyond the context, where learned positions are read again
        expected = decoder.step(tokens[:, position % T]).copy()
        np.testing.assert_array_equal(other.step(tokens[:, position % T]), expected)
    np.testing.assert_array_equal(other.read(tokens), decoder.read(tokens))


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_states(copied, recompute):
    model = made("hybrid", recompute=recompute)
    states = model.states(B)
    model.loss_and_gradient(*batch(), states=states)
    other = copied(states)
    assert not np.shares_memory(other.memory, states.memory) and states.memory.any()
    for seed in range(2):
        expected = model.loss_and_gradient(*batch(seed), states=states)
        assert model.loss_and_gradient(*batch(seed), states=other) == expected


def test_corpora_tokenizers_and_settings(tmp_path, copied):
    corpus = load_corpus(small.text_file(tmp_path), tokenizer="char", cache_dir=tmp_path / "cache", progress=False)
    other = copied(corpus)
    assert other.fingerprint == corpus.fingerprint and len(other.train) == len(corpus.train)
    np.testing.assert_array_equal(other.train.ids, corpus.train.ids)
    for tokenizer in (corpus.tokenizer, ByteTokenizer(end=True), CharTokenizer("abc "), PlainBPE.stories()):
        same = copied(tokenizer)
        np.testing.assert_array_equal(
            same.encode("a cab" if same.vocab_size == 4 else "a red ball"),
            tokenizer.encode("a cab" if same.vocab_size == 4 else "a red ball"),
        )
        assert same.to_json() == tokenizer.to_json()
    for settings in (ModelConfig(n_layer=2), TrainConfig(data="x.txt"), SamplingConfig(temp=0.5)):
        assert copied(settings) == settings


def test_a_run(tmp_path, copied):
    small.trainer(small.text_file(tmp_path), tmp_path / "run", max_iters=1).train()
    run = load(tmp_path / "run")
    other = copied(run)
    assert (other.path, other.config, other.step, other.sampling) == (run.path, run.config, run.step, run.sampling)
    assert other.model.loss(*batch()) == run.model.loss(*batch())
    np.testing.assert_array_equal(other.tokenizer.encode("ab"), run.tokenizer.encode("ab"))


def test_a_corpus_that_is_being_tokenized_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "can_grow", lambda plan: True)
    monkeypatch.setattr("slm_np.data.token_store.can_grow", lambda plan: True)
    corpus = load_corpus(small.text_file(tmp_path), cache_dir=tmp_path / "cache", progress=False, wait=False)
    for way in (copy.deepcopy, pickle.dumps):
        with pytest.raises(UserError, match="wait=True"):
            way(corpus)
    assert len(copy.deepcopy(corpus.building.wait()).train) == len(corpus.train)
