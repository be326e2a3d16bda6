"""`--recompute` in runs: the same bits as without it, even if it changes when a run resumes."""

import pytest
import small

from slm_np.ops.device import CPU

pytestmark = pytest.mark.usefixtures("one_thread")
TRANSFORMER = dict(n_layer=3, dropout=0.2, grad_accumulation_steps=2)
RECURRENT = dict(n_layer=3, pattern="MS", positions="none", feed_forward="none", carry_state=True)


def command(verb, *words):
    """Run a command, which must succeed."""
    assert small.status(verb, *words) == 0


@pytest.fixture
def data(tmp_path):
    return small.text_file(tmp_path, lines=60)


def assert_same_run(one, other):
    small.assert_same_state(one, other, 12)
    assert small.rows(one) == small.rows(other)


@pytest.mark.parametrize("settings", [TRANSFORMER, RECURRENT], ids=["transformer", "recurrent"])
@pytest.mark.parametrize("began", [True, None], ids=["with", "without"])
def test_a_resumed_run_may_change_it(tmp_path, data, settings, began):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    command("train", *small.flags(data, **settings, out_dir=whole, recompute=None if began else True))
    command("train", *small.flags(data, **settings, out_dir=halves, recompute=began, max_iters=4, lr_decay_iters=12))
    command("train", "--resume", halves, "--max-iters", 12, "--no-recompute" if began else "--recompute")
    assert_same_run(whole, halves)


def test_finetuning_has_the_same_bits(tmp_path, data):
    command("train", *small.flags(data, n_layer=3, max_iters=4, out_dir=tmp_path / "base"))
    words = "--base", tmp_path / "base", "--data", data, "--max-iters", 12, "--dropout", 0.2, "--eval-iters", 2
    command("finetune", *words, "--out-dir", tmp_path / "saved")
    command("finetune", *words, "--out-dir", tmp_path / "recomputed", "--recompute")
    assert_same_run(tmp_path / "saved", tmp_path / "recomputed")


def test_too_little_memory_suggests_recomputing(tmp_path, data, capsys, monkeypatch):
    monkeypatch.setattr(CPU, "free_bytes", lambda: 4096)
    for n_layer, recompute, named in ((3, None, True), (3, True, False), (1, None, False)):
        words = small.flags(data, out_dir=tmp_path / "run", n_layer=n_layer, recompute=recompute)
        assert small.status("train", *words) == 2
        assert ("use --recompute, or choose a smaller --batch-size" in capsys.readouterr().err) == named


def test_too_little_memory_for_finetuning_names_what_can_change(tmp_path, data, capsys, monkeypatch):
    command("train", *small.flags(data, n_layer=3, max_iters=0, out_dir=tmp_path / "base"))
    monkeypatch.setattr(CPU, "free_bytes", lambda: 4096)
    assert small.status("finetune", "--base", tmp_path / "base", "--data", data, "--out-dir", tmp_path / "new") == 2
    said = capsys.readouterr().err
    assert "choose a smaller --batch-size or --block-size" in said and "--n-layer" not in said
