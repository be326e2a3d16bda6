"""Flags and TOML files: the old names of settings, and values that have no effect."""

import numpy as np
import pytest
import small

from slm_np.cli.resume import resumed
from slm_np.cli.settings import settings
from slm_np.config import ModelConfig
from slm_np.errors import UserError
from slm_np.formats import run_config
from slm_np.presets import PRESETS, preset
from slm_np.train import parser

OLD = [
    ("--replay-data", "--retention-data", "retention_data", "old.txt"),
    ("--state-size", "--recurrence-size", "recurrence_size", 24),
    ("--channel-states", "--ssm-state-size", "ssm_state_size", 8),
]


def given(*words):
    """{field: value} of flags."""
    _, model, train = settings(parser().parse(list(map(str, words))))
    return model | train


@pytest.mark.parametrize("old, new, field, value", OLD)
def test_an_old_flag_sets_the_new_field_and_names_it(capsys, old, new, field, value):
    assert given(old, value) == {field: value}
    assert capsys.readouterr().err == f"slm_np: {old} is now {new}\n"
    assert given(new, value) == {field: value}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("old, new, field, value", OLD)
@pytest.mark.parametrize("separator", "-_")
def test_an_old_key_of_a_file_sets_the_new_field_and_names_it(capsys, tmp_path, old, new, field, value, separator):
    old, new = (name.removeprefix("--").replace("-", separator) for name in (old, new))
    (tmp_path / "settings.toml").write_text(f"{old} = {value!r}\n", encoding="utf-8")
    assert given("--config", tmp_path / "settings.toml") == {field: value}
    assert capsys.readouterr().err == f"slm_np: {old} is now {new}\n"


def test_old_names_are_neither_listed_nor_suggested(capsys):
    with pytest.raises(SystemExit):
        parser().parse(["--help"])
    shown = capsys.readouterr().out
    assert not any(f"{old} " in shown for old, *_ in OLD) and all(new in shown for _, new, *_ in OLD)
    with pytest.raises(UserError) as error:
        given("--replay-dat", "old.txt")
    assert "--replay-data" not in str(error.value)


def test_swish_is_another_name_of_silu():
    assert preset("stories", given("--feed-forward", "swish"))[0].feed_forward == "silu"


# Settings without effect


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("pattern", ["A", "M", "S", "AMS"])
def test_a_preset_drops_its_own_values_that_changes_make_useless(name, pattern):
    changes = dict(pattern=pattern, n_head=2) if "A" in pattern else dict(pattern=pattern)
    config, _ = preset(name, changes)
    own, default = PRESETS[name]["model"], ModelConfig()
    for field in own:
        if field in config.unused:
            assert getattr(config, field) == getattr(default, field)


@pytest.mark.parametrize(
    "name, changes, named",
    [
        ("stories", dict(pattern="M", n_head=2), "--n-head 2 has no effect without attention layers"),
        ("stories", dict(feed_forward="none", n_hidden=8), "--n-hidden 8 has no effect without a feed-forward"),
        ("stories", dict(pattern="M", positions="rotary"), "--positions rotary has no effect without attention layers"),
        ("mamba", dict(rope_theta=5.0), "--rope-theta 5.0 has no effect without attention layers"),
        ("byte-transformer", dict(head="tied", head_hidden=7), "--head-hidden 7 has no effect with --head tied"),
        ("byte-ssm", dict(init_std=0.1), "--init-std 0.1 has no effect with --init uniform"),
    ],
)
def test_a_change_without_effect_is_refused(name, changes, named):
    with pytest.raises(UserError, match=named):
        preset(name, changes)


def test_the_vocabulary_size_is_for_bare_token_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small.text_file(tmp_path)
    np.random.default_rng(0).integers(0, 1 << 16, 2000).astype("<u2").tofile(tmp_path / "ids.bin")
    ids = small.flags("ids.bin", out_dir="run", max_iters=1, vocab_size=1 << 16)
    assert small.status("train", *ids) == 0
    assert run_config.read_config("run").model.vocab_size == 1 << 16
    (tmp_path / "prepared").mkdir()
    for name in ("train.bin", "tokenizer.json"):
        (tmp_path / "prepared" / name).write_bytes(b"")
    for data in ("text.txt", "prepared"):
        capsys.readouterr()
        assert small.status("train", *small.flags(data, out_dir="new", vocab_size=300)) == 2
        assert "--vocab-size 300 has no effect with a tokenizer" in capsys.readouterr().err


# Resuming


def resume(tmp_path, model=None, train=None, **began):
    """The settings of a run that was started with `began`, resumed with changes."""
    run = small.config("text.txt", **began)
    run_config.write_config(tmp_path, run)
    return resumed(tmp_path, None, model or {}, train or {})


def test_a_resumed_run_accepts_its_settings_and_the_defaults_they_were_resolved_from(tmp_path):
    began = dict(n_head=4, n_embd=16, n_hidden=0)
    run = resume(tmp_path, dict(n_kv_head=0, n_hidden=0, head_dim=0), **began)
    assert (run.model.n_kv_head, run.model.n_hidden, run.model.head_dim) == (4, 64, 4)
    assert resume(tmp_path, dict(n_head=4, n_hidden=64), **began).model == run.model


@pytest.mark.parametrize(
    "model, named",
    [
        (dict(n_head=8), "was trained with --n-head 4, not 8"),
        (dict(n_kv_head=2), "was trained with --n-kv-head 4, not 2"),
        (dict(pattern="M"), "was trained with --pattern A, not M"),
        (dict(conv_kernel=3), "was trained with --conv-kernel 4, not 3"),
        (dict(n_embd=18), "was trained with --n-embd 16, not 18"),
    ],
)
def test_a_resumed_run_keeps_its_model(tmp_path, model, named):
    with pytest.raises(UserError, match=named):
        resume(tmp_path, model, n_head=4)


@pytest.mark.parametrize(
    "began, changes, dtype",
    [
        (dict(dtype="bf16"), dict(kernels="numpy"), "auto"),
        (dict(dtype="fp32"), dict(kernels="numpy"), "fp32"),
        (dict(dtype="fp32", kernels="numpy"), dict(kernels="numba", dtype="bf16"), "bf16"),
        (dict(dtype="fp32", kernels="numpy"), dict(device="cuda", dtype="bf16"), "bf16"),
        (dict(dtype="bf16"), dict(kernels="numba"), "bf16"),
        (dict(dtype="bf16"), dict(dtype="auto"), "bf16"),
    ],
)
def test_the_precision_may_change_with_the_kernels(tmp_path, began, changes, dtype):
    assert resume(tmp_path, train=changes, **began).train.dtype == dtype


def test_the_precision_may_not_change_with_the_same_kernels(tmp_path):
    with pytest.raises(UserError, match="was trained with --dtype bf16, not fp32"):
        resume(tmp_path, train=dict(kernels="numba", dtype="fp32"), dtype="bf16")
