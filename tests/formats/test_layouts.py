"""The file of the best model: the layout of a family or ours, told apart by tensor names, and memory for one tensor."""

import tracemalloc

import numpy as np
import pytest

from slm_np.config import ModelConfig, TrainConfig
from slm_np.errors import UserError
from slm_np.formats import checkpoint
from slm_np.formats.layouts import FamilyLayout, OurLayout, families, layout_of
from slm_np.formats.run_config import RunConfig
from slm_np.formats.tensors import tensor_names
from slm_np.nn.model import Model

SMALL = dict(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=16)
GPT2 = dict(positions="learned", norm="layernorm", feed_forward="gelu-tanh")
MODELS = dict(
    llama=dict(SMALL, n_kv_head=1, n_hidden=24),
    qwen=dict(SMALL, qk_norm=True, head_dim=12, head="linear"),
    gpt2=dict(SMALL, **GPT2),
    biased=dict(SMALL, **GPT2, bias=True),
    gpt_neo=dict(SMALL, **GPT2, score_scale=1.0, pattern="AL", window=4),
    neox=dict(SMALL, norm="layernorm", feed_forward="gelu", bias=True, parallel=True, head="linear"),
    mamba=dict(vocab_size=50, n_layer=2, n_embd=16, pattern="M", feed_forward="none"),
    none=dict(SMALL, norm="none"),
)
METADATA = dict(step=3, val_loss=0.5)


def run_and_weights(name):
    """(RunConfig, weights) of a model in which all weights are random, including norms and biases."""
    config = ModelConfig(**MODELS[name])
    weights = Model(config).parameters.weight
    for i, array in enumerate(weights.values()):
        array[...] = np.random.default_rng(i).normal(size=array.shape)
    return RunConfig(config, TrainConfig()), weights


def assert_equal(found, weights):
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_loaded(tmp_path, name):
    run, weights = run_and_weights(name)
    layout = layout_of(run)
    assert isinstance(layout, OurLayout if name == "none" else FamilyLayout)
    checkpoint.save_best(tmp_path, weights, METADATA, layout)
    assert ("embedding.weight" in tensor_names(tmp_path / "model.safetensors")) == (name == "none")
    assert_equal(checkpoint.load_best(tmp_path, layout=layout)[0], weights)
    into = Model(run.model).parameters.weight
    found, metadata = checkpoint.load_best(tmp_path, into, layout)
    assert found is into and metadata == dict(step="3", val_loss="0.5")
    assert_equal(into, weights)
    assert checkpoint.best_loss(tmp_path, layout) == (0.5, 3)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_in_another_layout_is_read_and_translated(tmp_path, name):
    """The file may be in our layout, as a version writes it that does not know the family."""
    run, weights = run_and_weights(name)
    layout, others = layout_of(run), [OurLayout(), *families(run.model)]
    assert len(others) == (1 if name == "none" else 2)
    for other in others:
        checkpoint.save_best(tmp_path, weights, METADATA, other)
        assert_equal(checkpoint.load_best(tmp_path, layout=layout)[0], weights)
        checkpoint.translate_best(tmp_path, layout)
        assert layout.holds(tensor_names(tmp_path / "model.safetensors"))
        assert_equal(checkpoint.load_best(tmp_path, layout=layout)[0], weights)
        assert checkpoint.best_loss(tmp_path, layout) == (0.5, 3)
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    checkpoint.translate_best(tmp_path, layout)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before


def test_a_file_of_another_model_is_named(tmp_path):
    run, weights = run_and_weights("llama")
    other, _ = run_and_weights("biased")
    checkpoint.save_best(tmp_path, weights, METADATA, layout_of(run))
    with pytest.raises(
        UserError, match="model.safetensors lacks tensor 'transformer.wte.weight'; restore the settings"
    ):
        checkpoint.load_best(tmp_path, layout=layout_of(other))
    wide = ModelConfig(**dict(MODELS["llama"], n_hidden=32))
    with pytest.raises(UserError, match=r"gate_proj.weight' with shape \(24, 16\) of float32, not \(32, 16\)"):
        checkpoint.load_best(tmp_path, layout=layout_of(RunConfig(wide, TrainConfig())))


def test_one_tensor_at_a_time_is_in_memory_beside_the_model(tmp_path):
    """Of 41 tensors of 1 MB, saving holds two at a time. Loading holds one of ours, made of at most three of theirs."""
    config = ModelConfig(vocab_size=512, block_size=8, n_layer=6, n_head=1, n_embd=512, n_hidden=512)
    run, weights = RunConfig(config, TrainConfig()), Model(config).parameters.weight
    layout, peaks = layout_of(run), []
    for action in (
        lambda: checkpoint.save_best(tmp_path, weights, METADATA, layout),
        lambda: checkpoint.load_best(tmp_path, weights, layout),
    ):
        tracemalloc.start()
        action()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (tmp_path / "model.safetensors").stat().st_size > 40 << 20
    assert peaks[0] < 3 << 20 and peaks[1] < 6 << 20, peaks
