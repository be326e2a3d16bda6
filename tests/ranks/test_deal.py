"""How an update is dealt to virtual ranks, the flags for ranks, and runs with virtual ranks on one process."""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small

from slm_np.cli.ranks import without
from slm_np.config import TrainConfig
from slm_np.errors import UserError
from slm_np.formats import checkpoint, run_config
from slm_np.nn.model import Model
from slm_np.training.virtual_ranks import deal


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.text_file(tmp_path_factory.mktemp("data"))


def dealt(batch, accumulation, virtual, size=1):
    """The Deal of each of `size` processes."""
    train = TrainConfig(batch_size=batch, grad_accumulation_steps=accumulation, virtual_ranks=virtual)
    return [deal(train, SimpleNamespace(rank=rank, size=size)) for rank in range(size)]


# Deals


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_micro_batch_is_dealt_once_and_the_same_for_all_numbers_of_processes(size):
    tried = 0
    for batch, accumulation, virtual in itertools.product((1, 2, 3, 4, 6, 8, 12, 16), (1, 2, 3, 5, 8), (1, 2, 4, 8)):
        rows = batch * accumulation
        if rows % virtual or virtual % size:
            continue
        tried += 1
        found = dealt(batch, accumulation, virtual, size)
        (alone,) = dealt(batch, accumulation, virtual)
        assert {(d.rows, d.each, d.micro_batches) for d in found} == {(alone.rows, alone.each, alone.micro_batches)}
        assert alone.rows * alone.each * virtual == rows and alone.rows <= batch
        larger = [n for n in range(alone.rows + 1, batch + 1) if (rows // virtual) % n == 0]
        assert not larger, "micro-batches of equal size could have more rows"
        assert [micro for d in found for micro in d.own] == list(range(alone.micro_batches))
        assert {len(d.own) for d in found} == {alone.micro_batches // size}
        assert all((d.stop - d.first) * size == virtual for d in found)
    assert tried > 10


def test_without_virtual_ranks_the_micro_batches_are_those_of_the_settings():
    (found,) = dealt(6, 5, 0)
    assert found.rows == 6 and found.micro_batches == 5 and list(found.own) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            (3, 2, 4),
            "an update has 6 sequences (--batch-size 3 x --grad-accumulation-steps 2), which --virtual-ranks 4 does "
            "not divide; choose a multiple of 4",
        ),
        (
            (2, 1, 4),
            "an update has 2 sequences (--batch-size 2 x --grad-accumulation-steps 1), which --virtual-ranks 4 does "
            "not divide; choose a multiple of 4",
        ),
        ((8, 1, 4, 8), "8 ranks do not divide --virtual-ranks 4; use 1 or 2 or 4 ranks"),
        ((8, 1, 4, 3), "3 ranks do not divide --virtual-ranks 4; use 1 or 2 or 4 ranks"),
        (
            (8, 1, 0, 2),
            "a run without --virtual-ranks cannot be split over 2 ranks; resume it in one process, or start a new run "
            "with --ranks",
        ),
    ],
)
def test_what_cannot_be_dealt_is_refused(arguments, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        dealt(*arguments)


# Flags


@pytest.mark.parametrize(
    "words, kept",
    [
        ("--ranks 4", ""),
        ("--ranks=4 --data x", "--data x"),
        ("--data x --ranks 4 --restarts 2 --out-dir y", "--data x --out-dir y"),
        ("--restarts=2 --virtual-ranks 4 --ranks 2 -c f.toml", "--virtual-ranks 4 -c f.toml"),
        ("--resume --ranks 2", "--resume"),
        ("--seed 4 --lora-rank 2", "--seed 4 --lora-rank 2"),
    ],
)
def test_ranks_do_not_get_the_flags_that_started_them(words, kept):
    assert without(words.split(), "--ranks", "--restarts") == kept.split()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--virtual-ranks", 3], "--virtual-ranks 3 is not a power of two; choose 2, 4, 8, ..."),
        (["--exchange", "bf16"], "--exchange bf16 has no effect without --virtual-ranks or --sync-every; leave it out"),
        (["--virtual-ranks", 4, "--batch-size", 6], "an update has 6 sequences (--batch-size 6 x"),
        (["--ranks", 3], "--ranks 3 is not a power of two; choose 2, 4, 8, ..."),
        (["--ranks", -2], "--ranks and --restarts count processes and restarts; they must be at least 0"),
        (["--restarts", -1], "--ranks and --restarts count processes and restarts; they must be at least 0"),
        (["--restarts", 1], "--restarts 1 has no effect without --ranks; leave it out"),
        (["--restarts", 1, "--ranks", 1], "--restarts 1 has no effect without --ranks; leave it out"),
    ],
)
def test_flags_that_do_not_fit_are_refused(data, tmp_path, monkeypatch, capsys, one_thread, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert f"slm_np: {sentence}" in small.refusal(capsys, "train", *small.flags(data), *words)


def test_carried_states_cannot_be_split(data, tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(tmp_path)
    words = small.flags(data, pattern="S", carry_state=True, virtual_ranks=2)
    said = "--carry-state reads the data in order, which --virtual-ranks cannot split; leave one of them out"
    assert said in small.refusal(capsys, "train", *words)


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_other_training_commands_check_the_flags_too(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    assert "--ranks 6 is not a power of two" in small.refusal(capsys, verb, "--ranks", 6)


def test_a_resumed_run_keeps_its_virtual_ranks(data, tmp_path, monkeypatch, capsys, one_thread, numpy_kernels):
    monkeypatch.chdir(tmp_path)
    words = small.flags(data, max_iters=2, out_dir="run", virtual_ranks=4, exchange="bf16", kernels="numpy")
    assert small.status("train", *words) == 0
    for change, named in (
        (["--virtual-ranks", 2], "--virtual-ranks 4, not 2"),
        (["--virtual-ranks", 0], "--virtual-ranks 4, not 0"),
        (["--exchange", "fp32"], "--exchange bf16, not fp32"),
    ):
        assert named in small.refusal(capsys, "train", "--resume", "run", *change)
    assert small.status("train", "--resume", "run", "--max-iters", 4) == 0
    train = run_config.read_config("run").train
    assert (train.virtual_ranks, train.exchange) == (4, "bf16") and checkpoint.newest_checkpoint("run").step == 4


# Runs on one process


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_with_virtual_ranks_trains_and_resumes_with_the_same_bits(data, tmp_path, monkeypatch, one_thread, dtype):
    monkeypatch.chdir(tmp_path)
    words = dict(dtype=dtype, virtual_ranks=4, lr_decay_iters=12, dropout=0.1)
    assert small.status("train", *small.flags(data, **words, out_dir="whole")) == 0
    assert small.status("train", *small.flags(data, **words, out_dir="halves", max_iters=8)) == 0
    assert small.status("train", "--resume", "halves", "--max-iters", 12) == 0
    small.assert_same_state("whole", "halves", 12)
    rows = small.rows("whole")
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert rows == small.rows("halves") and losses[-1] < losses[0] - 0.1
    assert Path("whole/model.safetensors").read_bytes() == Path("halves/model.safetensors").read_bytes()


@pytest.mark.parametrize("changes", [dict(), dict(grad_accumulation_steps=3), dict(exchange="bf16")], ids=str)
def test_an_update_is_that_of_the_same_rows_without_virtual_ranks(data, one_thread, numpy_kernels, changes):
    """In shuffled epochs the rows of an update do not depend on how they are cut into micro-batches."""
    epochs = dict(epochs=0.5, max_iters=1000, kernels="numpy", grad_clip=0.0)
    split = small.trainer(data, **epochs, **changes, virtual_ranks=4)
    whole = small.trainer(data, **epochs, **{name: value for name, value in changes.items() if name != "exchange"})
    assert split.max_iters == whole.max_iters > 10
    close = 0.02 if "exchange" in changes else 1e-4
    for _ in range(3):
        (loss, norm, rate), (other_loss, other_norm, other_rate) = split.step(), whole.step()
        assert rate == other_rate and loss == pytest.approx(other_loss, rel=1e-5 if "exchange" not in changes else 1e-3)
        assert norm == pytest.approx(other_norm, rel=close)
    a, b = (trainer.tensors() for trainer in (split, whole))
    for name in a:
        scale = np.abs(b[name]).max()
        np.testing.assert_allclose(a[name], b[name], atol=close * scale, rtol=close, err_msg=name)


@pytest.mark.parametrize("batch, accumulation, virtual", [(4, 1, 4), (6, 2, 4), (4, 1, 0), (3, 4, 4)])
def test_an_evaluation_sees_as_many_rows_as_its_settings_say(
    data, monkeypatch, one_thread, numpy_kernels, batch, accumulation, virtual
):
    trainer = small.trainer(
        data,
        batch_size=batch,
        grad_accumulation_steps=accumulation,
        virtual_ranks=virtual,
        eval_iters=5,
        kernels="numpy",
    )
    seen, loss = [], Model.loss

    def counted(model, tokens, *others):
        seen.append(len(tokens))
        return loss(model, tokens, *others)

    monkeypatch.setattr(Model, "loss", counted)
    assert trainer.estimate_loss().keys() == {"train_loss", "val_loss"}
    assert 5 * batch <= sum(seen) / 2 < 5 * batch + seen[0]
