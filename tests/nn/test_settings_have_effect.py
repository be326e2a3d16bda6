"""Every setting of a model changes what it computes, or is refused: none is ignored in silence."""

import dataclasses

import numpy as np
import pytest

from slm_np.config import ModelConfig
from slm_np.errors import UserError
from slm_np.nn.model import Model
from slm_np.presets import preset

pytestmark = pytest.mark.usefixtures("numpy_kernels")
SMALL = dict(vocab_size=20, block_size=8, n_layer=3, n_head=2, n_embd=8, n_hidden=12)
MODELS = [
    dict(),
    dict(positions="learned", norm="layernorm", feed_forward="gelu", bias=True),
    dict(positions="none", norm="none", feed_forward="none", head="mlp", init="uniform"),
    dict(pattern="AL", bias=True),
    dict(pattern="NA", qk_norm=True, norm="none", init="uniform"),
    dict(pattern="M"),
    dict(pattern="S", feed_forward="none", head="linear"),
    dict(pattern="S", feed_forward="none", residual=False, head="none", norm="none"),
    dict(pattern="AMS", head="mlp"),
]
VALUES = dict(
    n_head=[1, 4],
    n_kv_head=[1],
    head_dim=[2, 6],
    qkv_bias=["on", "off"],
    qk_norm=[True, False],
    score_scale=[0.9],
    window=[3],
    n_hidden=[5],
    positions=["none", "sinusoidal", "learned", "rotary"],
    norm=["none", "layernorm", "rmsnorm"],
    feed_forward=["none", "silu", "gelu", "gelu-tanh", "swiglu"],
    residual=[True, False],
    parallel=[True],
    head=["tied", "linear", "mlp", "none"],
    head_hidden=[3],
    recurrence_size=[3],
    n_inner=[3],
    ssm_state_size=[3],
    time_step_rank=[2],
    conv_kernel=[2],
    bias=[True, False],
    dropout=[0.5],
    rope_theta=[10.0],
    rope_scaling=["llama3:4,1,4,6", "llama3:1,1,4,6"],
    rotary_dim=[2],
    norm_eps=[0.5],
    init=["normal", "mimetic", "uniform"],
    init_std=[0.5],
)


def result(config):
    """What a model computes, the loss without dropout, and its parameters."""
    model = Model(config, seed=1)
    for vector in (array for array in model.parameters.weight.values() if array.ndim == 1):
        vector += 0.1  # biases begin at 0
    x = np.arange(16, dtype=np.int32).reshape(2, 8)
    return float(model.loss(x, (x + 3) % 20)), [(name, array.shape) for name, array in model.parameters.weight.items()]


def allowed(settings):
    """The ModelConfig of these settings, with the sizes of SMALL that have an effect. UserError if one is refused."""
    structure = ModelConfig(**{name: value for name, value in settings.items() if name not in SMALL})
    sizes = {name: value for name, value in SMALL.items() if name not in structure.unused}
    return ModelConfig(**sizes | settings)


def test_every_setting_of_the_architecture_is_tried():
    sizes_and_pattern = {"vocab_size", "block_size", "n_layer", "n_embd", "pattern"}
    assert set(VALUES) | sizes_and_pattern == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize(
    "settings, reason",
    [
        (dict(qkv_bias="on", bias=True), "--qkv-bias on has no effect with --bias"),
        (dict(qkv_bias="off"), "--qkv-bias off has no effect with --no-bias"),
        (dict(rope_scaling="llama3:1,1,4,6"), "has no effect with the factor 1"),
        (dict(window=3), "--window 3 has no effect without local attention layers"),
        (dict(pattern="M", qk_norm=True), "--qk-norm has no effect without attention layers"),
        (dict(pattern="N", positions="none"), "no other layer has them"),
        (dict(positions="learned", rotary_dim=2), "--rotary-dim 2 has no effect without rotary positions"),
        (dict(feed_forward="none", parallel=True), "--parallel has no effect without a feed-forward"),
        (dict(residual=False, parallel=True), "--parallel has no effect without residual connections"),
    ],
)
def test_a_value_without_effect_is_refused(settings, reason):
    with pytest.raises(UserError, match=reason):
        ModelConfig(**settings)


def test_all_columns_rotated_is_the_default():
    assert ModelConfig(rotary_dim=32) == ModelConfig()


def test_norm_eps_has_an_effect_on_the_norms_of_heads_alone():
    assert preset("stories", dict(norm="none", qk_norm=True, norm_eps=1e-3))[0].norm_eps == 1e-3
    assert not preset("qwen3-tiny", dict(pattern="M"))[0].qk_norm


@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(map(str, model.values())) or "default")
def test_a_setting_changes_the_model_or_is_refused(model):
    before = allowed(model)
    refused, changed = 0, 0
    for field, values in VALUES.items():
        for value in values:
            try:
                config = allowed(model | {field: value})
            except UserError:
                refused += 1
                continue
            if config == before:
                # The default of positions is for attention; `preset` refuses it where it is given without.
                assert getattr(before, field) == value or (field, value) == ("positions", "rotary")
            elif field != "dropout":
                changed += 1
                assert result(config) != result(before), (field, value)
    assert refused and changed


@pytest.mark.parametrize("pattern", ["A", "M", "S"])
def test_a_default_that_is_given_without_effect_is_refused(pattern):
    unused = preset("stories", dict(pattern=pattern))[0].unused
    assert unused
    for field in unused:
        with pytest.raises(UserError, match="has no effect"):
            preset("stories", dict(pattern=pattern) | {field: getattr(ModelConfig(), field)})
