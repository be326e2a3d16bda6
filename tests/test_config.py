"""The settings of a model: combinations that are refused, and sizes that follow from others."""

import pytest
from configs import config_of

from slm_np.config import TrainConfig
from slm_np.errors import UserError
from slm_np.presets import PRESETS, preset


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(pattern="MX"), "letters A"),
        (dict(head="none"), "--no-residual"),
        (dict(pattern="M", head="none", residual=False), "--feed-forward none"),
        (dict(pattern="M", conv_kernel=0), "--conv-kernel is 0"),
        (dict(pattern="M", ssm_state_size=0), "--ssm-state-size is 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        config_of(**settings)


def test_sizes_follow_from_the_width():
    config = config_of(pattern="MS", n_layer=2, n_embd=250)
    assert (config.n_inner, config.time_step_rank, config.ssm_state_size, config.recurrence_size) == (500, 16, 16, 500)


def test_a_pattern_has_attention_only_if_a_layer_uses_it():
    hybrid = dict(pattern="MMMA", n_embd=128, n_head=4)
    four, three = config_of(**hybrid, n_layer=4), config_of(**hybrid, n_layer=3)
    assert four.has_attention and not four.unlimited_context
    assert three.unlimited_context and not three.has_attention


# The learning rate at the end of the schedule


def test_the_least_rate_is_a_tenth_of_the_peak_unless_given():
    assert TrainConfig().min_lr == 1e-4
    assert TrainConfig(learning_rate=1e-5).min_lr == pytest.approx(1e-6)
    assert TrainConfig(learning_rate=1e-5, min_lr=0.0).min_lr == 0
    assert TrainConfig(learning_rate=0.0).min_lr == 0
    with pytest.raises(UserError, match="--min-lr 0.5 is above --learning-rate 0.1; lower --min-lr"):
        TrainConfig(learning_rate=0.1, min_lr=0.5)
    assert TrainConfig(learning_rate=0.5, min_lr=-1).min_lr == 0.05
    with pytest.raises(UserError, match="--min-lr is -0.5; it must be at least 0"):
        TrainConfig(min_lr=-0.5)


@pytest.mark.parametrize("name", PRESETS)
def test_the_least_rate_of_a_preset_follows_a_new_peak(name):
    own = PRESETS[name]["train"]
    assert preset(name)[1].min_lr == own["min_lr"]
    assert preset(name, train=dict(learning_rate=1e-6))[1].min_lr == pytest.approx(1e-7)
    assert preset(name, train=dict(min_lr=1e-6))[1].learning_rate == own["learning_rate"]
    assert preset(name, train=dict(learning_rate=1e-6, min_lr=1e-6))[1].min_lr == 1e-6
