"""Runs of several ranks, which MPI connects: the same bits for any number of them, and what happens when one fails."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small

from slm_np.formats import checkpoint, metrics, run_config

pytest.importorskip("mpi4py", reason="mpi4py is not installed")
BESIDE = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
MPIEXEC = shutil.which("mpiexec", path=BESIDE)
pytestmark = [
    pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec is installed"),
    pytest.mark.usefixtures("one_thread", "numpy_kernels"),
]
V = 4
SHAPE = dict(virtual_ranks=V, kernels="numpy", threads=1, n_layer=2)
LIMIT = 200  # seconds for a run, also on a busy machine
LONG = dict(max_iters=60, save_interval=10, log_interval=5, eval_interval=30)  # of runs that lose a rank
RANK = r"rank {} \(process \d+ on \S+\)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a text, conversations, and runs of one process without MPI."""
    folder = tmp_path_factory.mktemp("made")
    small.text_file(folder)
    small.text_file(folder, "new.txt", seed=3)
    rows = [
        dict(messages=[dict(role="user", content=f"Who sat on the {i}?"), dict(role="assistant", content=f"Cat {i}.")])
        for i in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def alone(made, one_thread, numpy_kernels):
    """alone(**changes): the directory of a run of one process with these settings, made once."""

    def run(**changes):
        return trained_alone(made, tuple(sorted(changes.items())))

    return run


@functools.cache
def trained_alone(made, changes):
    out = made / ("alone" + "".join(f"-{value}" for pair in changes for value in pair))
    assert small.status("train", *flags(made, out, **dict(changes))) == 0
    return out


def flags(made, out, **changes):
    return small.flags(made / "text.txt", **SHAPE | changes, out_dir=out)


def environment(folder, **more):
    """Environment variables of ranks, whose notes about their processes are in `folder`."""
    tests = Path(small.__file__).parent
    own = small.environment(TMPDIR=str(folder), **more)
    return own | dict(PYTHONPATH=os.pathsep.join([own["PYTHONPATH"], str(tests)]))


def start(command, folder, **more):
    return subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env=environment(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def ended(process):
    """(exit status, stdout, stderr) of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return process.returncode, out, err


def python(verb, *words):
    return [sys.executable, "-m", f"slm_np.{verb}", *words]


def command(verb, *words, folder, **more):
    """(exit status, stdout, stderr) of `python -m slm_np.VERB WORDS`."""
    return ended(start(python(verb, *words), folder, **more))


def mpiexec(n, *words):
    return [MPIEXEC, "-n", n, *words]


def program(name, n, words, folder, **more):
    """(exit status, stdout, stderr) of a program of rank_programs.py in n ranks."""
    file = Path(__file__).with_name("rank_programs.py")
    return ended(start(mpiexec(n, sys.executable, file, name, *words), folder, **more))


def assert_same_run(run, other, step=12):
    """Weights, moments, counters, metrics and the best model are the same, bit for bit."""
    small.assert_same_state(run, other, step)
    assert small.rows(run) == small.rows(other)
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def assert_one_sentence(err, pattern):
    """stderr has one line of the command that says why it ended, and no traceback."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("slm_np: ") and not line.startswith("slm_np: on the")]
    assert len(lines) == 1 and re.search(pattern, lines[0]), err


def process_of(folder, rank, words):
    """The number of the process of a rank, once it is known and the run has come as far as `words()` says."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for note in folder.glob(f"slm_np-ranks-*/{rank}"):
            if note.read_text(encoding="utf-8") and words():
                return int(note.read_text(encoding="utf-8"))
        time.sleep(0.01)
    raise AssertionError("the run has not come so far")


def at_step(run, step):
    """A function that says whether the run has a checkpoint of this step or a later one."""

    def reached():
        return any(path.name[11:].isdecimal() and int(path.name[11:]) >= step for path in run.glob("checkpoint-*"))

    return reached


# The same bits


@pytest.mark.parametrize(
    "n, changes",
    [
        (2, dict()),
        (2, dict(exchange="bf16")),
        pytest.param(4, dict(), marks=pytest.mark.slow),
        pytest.param(4, dict(exchange="bf16"), marks=pytest.mark.slow),
        pytest.param(8, dict(virtual_ranks=8, batch_size=8), marks=pytest.mark.slow),
        pytest.param(2, dict(batch_size=6, grad_accumulation_steps=2, dropout=0.1), marks=pytest.mark.slow),
        pytest.param(4, dict(optimizer="muon", beta1=0.95), marks=pytest.mark.slow),
        pytest.param(2, dict(max_iters=None, epochs=0.25), marks=pytest.mark.slow),
        pytest.param(2, dict(pattern="SM"), marks=pytest.mark.slow),
        pytest.param(2, dict(dtype="bf16", kernels="numba"), marks=pytest.mark.slow),
        pytest.param(4, dict(dtype="fp32", kernels="numba"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ranks_give_the_bits_of_one_process(made, alone, tmp_path, n, changes):
    run, expected = tmp_path / "run", alone(**changes)
    status, out, err = command("train", *flags(made, run, **changes), "--ranks", n, folder=tmp_path)
    assert status == 0 and "Traceback" not in err, err
    step = checkpoint.newest_checkpoint(expected).step
    assert_same_run(run, expected, step)
    assert re.search(rf"^{n} ranks on 1 machine, \S.*, 1 thread each$", err, re.M), err
    for line in ("slm_np: on the CPU", "corpus ", "model stories", "run in ", f"step {step}: train "):
        assert len(re.findall(f"^{line}", err, re.M)) == 1, err
    assert len(re.findall("^validation ", out, re.M)) == 1, out
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in expected.iterdir())
    assert run_config.read_config(run).train.virtual_ranks == changes.get("virtual_ranks", V)
    waiting = [row["waiting"] for row in metrics.read_metrics(run) if "loss" in row]
    assert waiting and all(0 <= share <= 1 for share in waiting) and any(waiting)


def test_another_exchange_gives_other_bits(alone):
    """Otherwise runs would agree that do not round what they exchange."""
    fp32, bf16 = (checkpoint.load_checkpoint(alone(**x) / "checkpoint-12") for x in ({}, dict(exchange="bf16")))
    assert any((fp32.model[name] != bf16.model[name]).any() for name in fp32.model)


def test_a_run_begun_on_4_ranks_is_resumed_on_2(made, alone, tmp_path):
    run = tmp_path / "run"
    words = flags(made, run, lr_decay_iters=12)
    status, _, err = command("train", *words, "--max-iters", 8, "--ranks", 4, folder=tmp_path)
    assert status == 0 and "\n4 ranks on 1 machine" in err, err
    status, _, err = command("train", "--resume", run, "--max-iters", 12, "--ranks", 2, folder=tmp_path)
    assert status == 0 and f"resuming in {run} from step 8\n" in err and "\n2 ranks on" in err, err
    assert_same_run(run, alone(lr_decay_iters=12))


def test_mpiexec_starts_ranks_as_well_and_the_virtual_ranks_are_then_as_few_as_can_be(made, alone, tmp_path):
    run, words = tmp_path / "run", flags(made, tmp_path / "run", virtual_ranks=None)
    status, _, err = ended(start(mpiexec(2, *python("train", *words)), tmp_path))
    assert status == 0 and "\n2 ranks on 1 machine" in err and "Traceback" not in err, err
    assert_same_run(run, alone(virtual_ranks=2))


@pytest.fixture(scope="module")
def base(made):
    from slm_np.ops.device import CPU

    CPU.use_kernels("numpy")
    words = flags(made, made / "base", virtual_ranks=None, max_iters=8, learning_rate=0.01, block_size=32)
    assert small.status("train", *words) == 0
    CPU.use_kernels()
    return made / "base"


@pytest.mark.parametrize(
    "data, words",
    [
        ("new.txt", ["--lora-rank", 2, "--lora-dropout", 0.1, "--retention-data", "text.txt"]),
        ("rows.jsonl", []),
        pytest.param("rows.jsonl", ["--exchange", "bf16"], marks=pytest.mark.slow),
        pytest.param("new.txt", ["--dropout", 0.1], marks=pytest.mark.slow),
    ],
    ids=["lora", "conversations", "rounded-conversations", "full"],
)
def test_finetuning_on_2_ranks_gives_the_bits_of_one_process(made, base, tmp_path, monkeypatch, data, words):
    monkeypatch.chdir(made)
    shared = ["--base", base, "--data", made / data, "--max-iters", 6, "--eval-iters", 2, "--log-interval", 2]
    shared += ["--save-interval", 3, "--threads", 1, "--virtual-ranks", V, "--kernels", "numpy"]
    shared += [made / word if word == "text.txt" else word for word in words]
    assert small.status("finetune", *shared, "--out-dir", tmp_path / "alone") == 0
    status, _, err = command("finetune", *shared, "--out-dir", tmp_path / "run", "--ranks", 2, folder=tmp_path)
    assert status == 0 and "Traceback" not in err, err
    small.assert_same_state(tmp_path / "run", tmp_path / "alone", 6)
    assert small.rows(tmp_path / "run") == small.rows(tmp_path / "alone")
    if data == "rows.jsonl":
        return
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    status, _, err = command("finetune", "--resume", tmp_path / "run", "--ranks", 2, folder=tmp_path)
    assert status == 0 and "from step 3\n" in err, err
    small.assert_same_state(tmp_path / "run", tmp_path / "alone", 6)


@pytest.mark.slow
def test_pretraining_on_2_ranks_gives_the_bits_of_one_process(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    words = ["--data", made / "text.txt", *small.flags(made / "text.txt", **SHAPE)]
    assert small.status("pretrain", *words, "--out-dir", tmp_path / "alone") == 0
    status, _, err = command("pretrain", *words, "--out-dir", tmp_path / "run", "--ranks", 2, folder=tmp_path)
    assert status == 0 and "Traceback" not in err, err
    small.assert_same_state(tmp_path / "run", tmp_path / "alone", 12)


@pytest.mark.parametrize("n, exchange", [(2, "fp32"), pytest.param(4, "bf16", marks=pytest.mark.slow)])
def test_a_process_computes_its_micro_batches_and_sends_its_chunks_only(made, alone, tmp_path, n, exchange):
    run, settings = tmp_path / "run", dict(max_iters=3, exchange=exchange, grad_accumulation_steps=2)
    status, _, err = program("count", n, flags(made, run, **settings), tmp_path, COUNTS=str(tmp_path))
    assert status == 0, err
    found = [json.loads((tmp_path / f"counts-{rank}.json").read_text(encoding="utf-8")) for rank in range(n)]
    each = 2 * V  # micro-batches of an update, as a virtual rank has 2 rows, or 1 micro-batch of 2
    total = sum(len(counts["calls"]) for counts in found) // 3
    assert total in (each, V)
    for counts in found:
        assert counts["updates"] == 3 and len(counts["calls"]) == 3 * total // n
        # Two exchanges of everything but the own chunk, and the losses of V / N virtual ranks to each other process.
        width = 2 if exchange == "bf16" else 4
        expected = 2 * (n - 1) / n * counts["parameters"] * width + (n - 1) * 8 * V // n
        assert all(abs(sent - expected) <= n * width for sent in counts["sent"]), (counts["sent"], expected)
    batches = [json.dumps(call) for counts in found for call in counts["calls"]]
    assert len(set(batches)) == len(batches), "two processes computed the same micro-batch"


# Stopping and failing


@pytest.mark.parametrize("name, status", [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.slow)])
def test_a_signal_to_the_launcher_stops_all_ranks_and_saves(made, alone, tmp_path, name, status):
    run = tmp_path / "run"
    words = flags(made, run, max_iters=10**6, lr_schedule="constant", min_lr=None, save_interval=5, eval_interval=10**6)
    running = start([*python("train", *words), "--ranks", 2], tmp_path)
    process_of(tmp_path, 1, at_step(run, 5))
    running.send_signal(getattr(signal, name))
    found, _, err = ended(running)
    assert found == status and "Traceback" not in err, err
    step = checkpoint.newest_checkpoint(run).step
    said = f"stopped at step {step}; resume with: python -m slm_np.train --resume {run}\n"
    assert step >= 5 and err.count(said) == 1, err
    words = flags(made, tmp_path / "alone", max_iters=step, lr_schedule="constant", min_lr=None, eval_interval=10**6)
    assert small.status("train", *words) == 0
    small.assert_same_state(run, tmp_path / "alone", step, but=small.EVALUATIONS)


@pytest.mark.parametrize("name, status", [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.slow)])
def test_a_signal_before_training_ends_all_ranks_and_restarts_none(made, tmp_path, name, status):
    running = start([*python("train", *flags(made, tmp_path / "run")), "--ranks", 2, "--restarts", 1], tmp_path)
    process_of(tmp_path, 0, lambda: True)
    running.send_signal(getattr(signal, name))
    found, _, err = ended(running)
    assert found == status and "Traceback" not in err and "going on" not in err, err
    assert not any(tmp_path.glob("slm_np-ranks-*")), "notes were left behind"


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_rank_is_named_and_a_restart_ends_with_the_same_bits(made, alone, tmp_path, restarts):
    run = tmp_path / "run"
    words = [*flags(made, run, **LONG), "--ranks", 2, *["--restarts", restarts] * bool(restarts)]
    running = start(python("train", *words), tmp_path)
    victim = process_of(tmp_path, 1, at_step(run, 20))
    os.kill(victim, signal.SIGKILL)
    status, _, err = ended(running)
    assert "Traceback" not in err, err
    assert err.count(f"slm_np: rank 1 (process {victim} on ") == 1 and re.search(rf"{victim} on \S+ died$", err, re.M)
    if not restarts:
        assert status == 75, (status, err)
        assert f"slm_np: resume with: python -m slm_np.train --resume {run} --ranks N\n" in err, err
        assert checkpoint.newest_checkpoint(run).step < 60
        return
    assert status == 0, (status, err)
    assert "slm_np: resuming from the last checkpoint with 1 rank; 0 restarts left\n" in err, err
    assert_same_run(run, alone(**LONG), 60)


@pytest.mark.slow
def test_a_run_goes_from_4_ranks_to_2_to_1_when_ranks_are_lost(made, alone, tmp_path):
    run = tmp_path / "run"
    running = start(python("train", *flags(made, run, **LONG), "--ranks", 4, "--restarts", 2), tmp_path)
    for victim, step in ((3, 10), (0, 30)):
        number = process_of(tmp_path, victim, at_step(run, step))
        os.kill(number, signal.SIGKILL)
        while any(note.read_text(encoding="utf-8") == str(number) for note in tmp_path.glob("slm_np-ranks-*/*")):
            time.sleep(0.01)
    status, _, err = ended(running)
    assert status == 0 and "Traceback" not in err, err
    assert re.findall("with (.*); (.*) left", err) == [("2 ranks", "1 restart"), ("1 rank", "0 restarts")], err
    assert_same_run(run, alone(**LONG), 60)


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_a_restart_ends_with_the_same_bits(made, alone, tmp_path):
    run = tmp_path / "run"
    running = start(python("train", *flags(made, run, **LONG), "--ranks", 2, "--restarts", 1), tmp_path)
    victim = process_of(tmp_path, 1, at_step(run, 20))
    stopped = time.monotonic()
    os.kill(victim, signal.SIGSTOP)
    status, _, err = ended(running)
    assert status == 0 and "Traceback" not in err, err
    lost = rf"^slm_np: rank 1 \(process {victim} on \S+\) has sent no heartbeat for 15 s, so all ranks end$"
    assert len(re.findall(lost, err, re.M)) == 1, err
    assert time.monotonic() - stopped < LIMIT
    assert_same_run(run, alone(**LONG), 60)


def test_ranks_with_another_text_are_refused(made, tmp_path):
    """Both read text.txt, in folders of their own as on two machines."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        small.text_file(tmp_path / name, seed=name == "second")
    words = python("train", *small.flags("text.txt", **SHAPE, out_dir=tmp_path / "run"))
    one, two = ([*("-n", 1, "-wdir", tmp_path / name), *words] for name in ("first", "second"))
    status, _, err = ended(start([MPIEXEC, *one, ":", *two], tmp_path))
    assert status == 2
    assert_one_sentence(
        err, rf"^slm_np: {RANK.format(1)} has another corpus than rank 0 \(.*\); all ranks need the same$"
    )


def test_ranks_with_other_settings_are_refused(made, tmp_path):
    one, two = (["-n", 1, *python("train", *flags(made, tmp_path / "run", seed=seed))] for seed in (1, 2))
    status, _, err = ended(start([MPIEXEC, *one, ":", *two], tmp_path))
    assert status == 2
    assert_one_sentence(err, rf"^slm_np: {RANK.format(1)} has another set of settings than rank 0 \(.*\)")


def test_ranks_that_meet_every_few_updates_train_resume_and_evaluate(made, tmp_path):
    meeting = dict(virtual_ranks=0, sync_every=4, max_iters=12, save_interval=8, eval_interval=5, log_interval=3)
    status, _, err = command("train", *flags(made, tmp_path / "run", **meeting), "--ranks", 2, folder=tmp_path)
    assert status == 0 and "Traceback" not in err, err
    assert [row["step"] for row in small.rows(tmp_path / "run") if "val_loss" in row] == [8, 12]
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    words = ["--resume", tmp_path / "copy", "--max-iters", 18, "--ranks", 2]
    status, _, err = command("train", *words, folder=tmp_path)
    assert status == 0 and "resuming in" in err, err
    assert (tmp_path / "copy/checkpoint-18").is_dir()
    losses = [row["val_loss"] for row in small.rows(tmp_path / "copy") if "val_loss" in row]
    assert losses[-1] < losses[0]


def test_one_rank_that_meets_itself_trains_like_one_that_does_not(made, alone, tmp_path):
    changes = dict(virtual_ranks=0, sync_every=4, outer_rate=1.0, outer_momentum=0.0)
    status = small.status("train", *flags(made, tmp_path / "run", **changes))
    assert status == 0
    expected, found = (
        path / "checkpoint-12" / "model.safetensors" for path in (alone(virtual_ranks=0), tmp_path / "run")
    )
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(fit_time="10s", max_iters=None), "--sync-every needs a length that no clock decides"),
        (dict(virtual_ranks=2), "leave one of them out"),
        (dict(batch_size=3, ranks=2), "which 2 ranks do not divide"),
        (dict(sync_every=0, outer_rate=0.5), "--outer-rate 0.5 has no effect without --sync-every"),
        (dict(sync_every=0, virtual_ranks=2, exchange="int8"), "--exchange int8 is for --sync-every"),
    ],
)
def test_settings_of_meetings_that_do_not_fit_are_refused(made, tmp_path, capsys, changes, sentence):
    changes = dict(virtual_ranks=0, sync_every=4) | changes
    ranks = changes.pop("ranks", 0)
    words = flags(made, tmp_path / "run", **{name: value for name, value in changes.items() if value is not None})
    if changes.get("max_iters", 1) is None:
        at = words.index("--max-iters")
        del words[at : at + 2]
    if ranks:
        status, _, err = command("train", *words, "--ranks", ranks, folder=tmp_path)
    else:
        status, err = small.status("train", *words), capsys.readouterr().err
    assert status == 2 and sentence in err and "Traceback" not in err, err


def test_ranks_of_another_version_are_refused(made, tmp_path):
    status, _, err = program("version", 2, flags(made, tmp_path / "run"), tmp_path)
    assert status == 2
    assert_one_sentence(err, rf"^slm_np: {RANK.format(1)} has another version of slm_np than rank 0 \(0\.0\.1, not ")


def test_weights_that_differ_are_found_at_the_next_comparison(made, tmp_path):
    run = tmp_path / "run"
    status, _, err = program("differ", 2, flags(made, run, log_interval=1, save_interval=1), tmp_path)
    assert status == 2
    assert_one_sentence(
        err, rf"^slm_np: {RANK.format(1)} has another checksum of the weights than rank 0 \([0-9a-f]+, not [0-9a-f]+\)"
    )
    assert [row["step"] for row in metrics.read_metrics(run) if "loss" in row] == list(range(1, 9))


def test_a_bug_on_one_rank_ends_all_and_is_shown(made, tmp_path):
    status, _, err = program("fail", 2, flags(made, tmp_path / "run"), tmp_path)
    assert status == 1 and err.count("Traceback") == 1 and "ZeroDivisionError: a bug" in err, err


def test_a_full_disk_ends_all_ranks_with_one_sentence(made, tmp_path):
    status, _, err = program("full", 2, flags(made, tmp_path / "run"), tmp_path)
    assert status == 2
    assert_one_sentence(err, r"^slm_np: cannot access checkpoint: no space left on device$")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--virtual-ranks", 1], r"^slm_np: 2 ranks do not divide --virtual-ranks 1; use 1 rank$"),
        (["--data", "missing.txt"], r"^slm_np: .*missing\.txt"),
        (
            ["--threads", 1000],
            rf"^slm_np: --threads 1000 is more than the \d+ cores? that {RANK.format(0)} is bound to",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_of_one_rank(made, tmp_path, words, sentence):
    run = tmp_path / "run"
    status, out, err = command("train", *flags(made, run), *words, "--ranks", 2, folder=tmp_path)
    assert status == 2 and out == "" and not run.exists()
    assert_one_sentence(err, sentence)


def test_processes_that_do_not_find_each_other_are_refused(made, tmp_path):
    """As by an srun of another MPI than that of mpi4py."""
    run, variables = tmp_path / "run", dict(SLURM_NTASKS="4", SLURM_PROCID="3")
    status, out, err = command("train", *flags(made, run), folder=tmp_path, **variables)
    assert status == 2 and out == "" and not run.exists()
    assert_one_sentence(
        err,
        r"^slm_np: 4 processes were started, but each is alone in its MPI, \S.*; start them by the mpiexec of that "
        "MPI, or install mpi4py for the MPI that started them$",
    )


def test_another_number_of_ranks_than_mpi_started_is_refused(made, tmp_path):
    words = python("train", *flags(made, tmp_path / "run"), "--ranks", 4)
    status, _, err = ended(start(mpiexec(2, *words), tmp_path))
    assert status == 2
    assert_one_sentence(err, "^slm_np: --ranks 4 differs from the 2 that MPI started; leave it out$")
