"""Flags and TOML files: the old names of settings, and values that have no effect."""

import os
from pathlib import Path

import numpy as np
import pytest
import small

from slm_np.cli.flags import whole_number
from slm_np.cli.resume import resumed
from slm_np.cli.settings import settings
from slm_np.config import ModelConfig, SamplingConfig, TrainConfig, check_effect
from slm_np.errors import UserError
from slm_np.formats import run_config
from slm_np.presets import PRESETS, preset
from slm_np.train import parser
from slm_np.words import quoted

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


def toml(tmp_path, content):
    """{field: value} of a TOML file of these bytes."""
    (tmp_path / "settings.toml").write_bytes(content)
    return given("--config", tmp_path / "settings.toml")


# How values may be written


@pytest.mark.parametrize("text", ["1000", "1e3", "1_000", "1000.0", "1E3", " 1000"])
def test_a_whole_number_may_be_written_in_other_ways(text):
    assert given("--max-iters", text) == dict(max_iters=1000)
    assert whole_number(text, "--max-tokens", 0) == 1000


@pytest.mark.parametrize("text", ["1.5", "1e400", "nan", "ten", "1e17", "0x10"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(UserError, match=f"--max-iters '{text}' is not a whole number"):
        given("--max-iters", text)
    with pytest.raises(UserError, match="must be a whole number of at least 0"):
        whole_number(text, "--max-tokens", 0)


@pytest.mark.parametrize(
    "text, seconds", [("90s", 90), ("1.5h", 5400), ("2h30m", 9000), ("3m20s", 200), ("1h0m1s", 3601), (".5m", 30)]
)
def test_durations(text, seconds):
    assert TrainConfig(max_time=text).max_seconds == seconds


@pytest.mark.parametrize("text", ["90", "s", "2m1h", "1e9h", "-3m", "nanh", "1 h", "3d", "0s", "inf s", "1h 5m"])
def test_malformed_durations(text):
    with pytest.raises(UserError, match="is not a duration; write 90s, 20m, 1.5h or 2h30m"):
        TrainConfig(max_time=text)


@pytest.mark.parametrize("flag", ["data", "val-data", "out-dir", "tokenizer", "pattern", "max-time", "fit-time"])
def test_an_empty_value_is_refused_by_name(flag):
    with pytest.raises(UserError, match=f"--{flag} is empty; give it a value, or leave it out"):
        given(f"--{flag}", "")


@pytest.mark.parametrize(
    "verb, words",
    [
        ("train", ["--resume", ""]),
        ("train", ["--config", ""]),
        ("finetune", ["--base", ""]),
        ("generate", ["--model", ""]),
        ("evaluate", ["--data", ""]),
        ("prepare", ["", "--out-dir", "x"]),
        ("prepare", ["x", "--out-dir", ""]),
        ("convert", [""]),
        ("info", [""]),
    ],
)
def test_an_empty_path_names_nothing(capsys, verb, words):
    assert small.status(verb, *words) == 2
    assert "an empty path names nothing" in capsys.readouterr().err


def test_an_empty_value_among_several_is_refused():
    with pytest.raises(UserError, match="--data has an empty value; leave it out"):
        given("--data", "a.txt", "")


def test_stray_words_are_recognized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my text.txt").write_text("text", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "settings.toml").write_text("", encoding="utf-8")
    for word, hint in {
        "my text.txt": "did you mean --data " + quoted("my text.txt"),
        "run": "did you mean --resume run",
        "mamba": "did you mean --preset mamba",
        "settings.toml": "did you mean --config settings.toml",
        "help": "a value follows its flag, see slm-np train --help",
    }.items():
        with pytest.raises(UserError) as error:
            given(word)
        assert hint in str(error.value)


def test_a_config_file_of_a_windows_editor(tmp_path):
    text = "max-iters = 1e4\r\ndata = 'größe.txt'\r\n"
    wanted = dict(max_iters=10_000, data="größe.txt")
    for content in (text.encode(), text.encode("utf-8-sig"), b"\xff\xfe" + text.encode("utf-16-le")):
        assert toml(tmp_path, content) == wanted
        assert type(given("--config", tmp_path / "settings.toml")["max_iters"]) is int


@pytest.mark.parametrize(
    "content, named",
    [
        ("[training]\nmax-iters = 3", r"has the section \[training\]; write its settings without a section"),
        ("[a.b]\nc = 3", r"has the section \[a\]"),
        ("max-iters = 1\nmax-iters = 2", "is not TOML"),
        ("max-iters = 1\nmax_iters = 2", "max-iters twice, with - and with _; give it once"),
        ("max-iters = 1.5", "--max-iters must be of type int"),
    ],
)
def test_config_files_that_are_refused(tmp_path, content, named):
    with pytest.raises(UserError, match=named):
        preset("stories", train=toml(tmp_path, content.encode()))


def test_home_folders_in_settings(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    train = TrainConfig(data="~/a.txt, ~/b.txt,./~/c", out_dir="~/run", val_data=Path("~") / "v", retention_data="x~")
    assert train.data == f"{tmp_path}/a.txt,{tmp_path}/b.txt,./~/c"
    assert (train.out_dir, train.retention_data) == (f"{tmp_path}/run", "x~")
    assert train.val_data == os.path.expanduser(os.path.join("~", "v"))
    (tmp_path / "settings.toml").write_text('out-dir = "~/from-file"', encoding="utf-8")
    values = given("--config=~/settings.toml")
    assert preset("stories", train=values)[1].out_dir == f"{tmp_path}/from-file"


@pytest.mark.parametrize("name", ["data", "val_data", "retention_data"])
def test_repeated_flags_of_data_add_up(tmp_path, name):
    flag = "--" + name.replace("_", "-")
    assert given(flag, "a.txt", flag, "b.txt", "c.txt") == {name: "a.txt,b.txt,c.txt"}
    assert given(flag, "a.txt,b.txt", flag, "c.txt") == {name: "a.txt,b.txt,c.txt"}
    odd = tmp_path / "a, b.txt"
    odd.touch()
    assert given(flag, odd) == {name: str(odd)}
    with pytest.raises(UserError, match=f"{flag} .*a, b.txt' contains a comma"):
        given(flag, odd, flag, "c.txt")


def test_an_old_name_of_a_repeated_flag_adds_up(capsys):
    found = given("--replay-data", "a.txt", "--retention-data", "b.txt", "--replay-data", "c.txt")
    assert found == dict(retention_data="a.txt,b.txt,c.txt")


def test_the_last_one_of_other_repeated_flags_wins():
    assert given("--n-layer", 2, "--n-layer", 3, "--max-iters", 5) == dict(n_layer=3, max_iters=5)


@pytest.mark.parametrize("value", ["marker", "blank-line", "line", "csv:a b"])
def test_values_of_documents(value):
    assert preset("stories", {}, given("--documents", value))[1].documents == value


@pytest.mark.parametrize("value, hint", [("lines", "did you mean line"), ("csv:", "csv:COLUMN"), ("csv", "csv:COLUMN")])
def test_other_values_of_documents_are_refused(value, hint):
    with pytest.raises(UserError, match=f"--documents '{value}' is unknown; .*{hint}"):
        preset("stories", {}, given("--documents", value))


# Settings without effect


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("pattern", ["A", "M", "S", "AMS"])
def test_a_preset_drops_its_own_values_that_changes_make_useless(name, pattern):
    changes = dict(pattern=pattern, n_head=2) if "A" in pattern else dict(pattern=pattern)
    config, _ = preset(name, changes)
    for field in PRESETS[name]["model"]:
        if field in config.unused:
            assert getattr(config, field) == ModelConfig.__dataclass_fields__[field].default


@pytest.mark.parametrize(
    "name, changes, named",
    [
        ("stories", dict(pattern="M", n_head=2), "--n-head 2 has no effect without attention layers"),
        ("stories", dict(feed_forward="none", n_hidden=8), "--n-hidden 8 has no effect without a feed-forward"),
        ("stories", dict(pattern="M", positions="rotary"), "--positions rotary has no effect without attention layers"),
        ("stories", dict(pattern="M", init="mimetic"), "--init mimetic has no effect without attention layers"),
        ("mamba", dict(rope_theta=5.0), "--rope-theta 5.0 has no effect without attention layers"),
        ("byte-transformer", dict(head="tied", head_hidden=7), "--head-hidden 7 has no effect with --head tied"),
        ("byte-ssm", dict(init_std=0.1), "--init-std 0.1 has no effect with --init uniform"),
    ],
)
def test_a_change_without_effect_is_refused(name, changes, named):
    with pytest.raises(UserError, match=named):
        preset(name, changes)


@pytest.mark.parametrize(
    "words, named",
    [
        ("--lr-schedule constant --min-lr 1e-4", "--min-lr 0.0001 has no effect with --lr-schedule constant"),
        ("--lr-schedule constant --lr-decay-iters 5", "--lr-decay-iters 5 has no effect with --lr-schedule constant"),
        ("--max-time 3s --lr-decay-iters 5", "--lr-decay-iters 5 has no effect with --max-time 3s"),
        ("--weight-decay 0 --decay all", "--decay all has no effect with --weight-decay 0"),
        ("--pattern S --no-bias --norm rmsnorm --feed-forward none", "--no-bias has no effect as no part"),
        ("--pattern M --n-kv-head 3", "--n-kv-head 3 has no effect without attention layers"),
        ("--pattern M --n-kv-head 0", "--n-kv-head 0 has no effect without attention layers"),
    ],
)
def test_a_flag_of_training_without_effect_is_refused(words, named):
    name, model, train = settings(parser().parse(words.split()))
    with pytest.raises(UserError, match=named):
        preset("stories", model, train)


def test_a_recipe_of_a_preset_may_hold_what_has_no_effect():
    assert preset("stories", train=dict(lr_schedule="constant"))[1].min_lr == 2e-4
    assert preset("stories", train=dict(max_time="3s", lr_decay_iters=0))[1].max_seconds == 3


@pytest.mark.parametrize(
    "given, named",
    [
        (dict(samplers="temp", top_k=1), "--top-k 1 has no effect without top-k in --samplers temp"),
        (dict(samplers="top-k", temp=0.5), "--temp 0.5 has no effect without temp in --samplers top-k"),
        (dict(samplers="temp", repeat_penalty=2.0), "--repeat-penalty 2.0 has no effect without penalty"),
        (dict(temp=0.0, top_k=5), "--top-k 5 has no effect with --temp 0, which takes the likeliest token"),
        (dict(temp=0.0, min_p=0.5), "--min-p 0.5 has no effect with --temp 0"),
        (dict(repeat_last_n=9), "--repeat-last-n 9 has no effect without --repeat-penalty"),
        (dict(repeat_penalty=2.0, repeat_last_n=0), "--repeat-penalty 2.0 has no effect with --repeat-last-n 0"),
        (dict(confidence_patience=5), "--confidence-patience 5 has no effect without --min-confidence"),
    ],
)
def test_a_flag_of_sampling_without_effect_is_refused(given, named):
    with pytest.raises(UserError, match=named):
        check_effect(SamplingConfig(**given), given)


@pytest.mark.parametrize(
    "given",
    [
        dict(temp=0.0, seed=3, repeat_penalty=1.2),
        dict(samplers="temp", top_k=0, top_p=1.0, min_p=0.0),
        dict(repeat_penalty=2.0, repeat_last_n=9),
        dict(min_confidence=0.2, confidence_patience=5),
        dict(samplers="top-k", top_k=4),
    ],
)
def test_flags_of_sampling_with_an_effect_pass(given):
    check_effect(SamplingConfig(**given), given)


def test_the_vocabulary_size_is_for_bare_token_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small.text_file(tmp_path)
    np.random.default_rng(0).integers(0, 1 << 16, 2000).astype("<u2").tofile(tmp_path / "ids.bin")
    ids = small.flags("ids.bin", out_dir="run", max_iters=1, vocab_size=1 << 16)
    assert small.status("train", *ids) == 0
    assert run_config.read_config("run").model.vocab_size == 1 << 16
    assert small.status("prepare", "text.txt", "--out-dir", "prepared") == 0
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
