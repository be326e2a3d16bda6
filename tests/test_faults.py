"""The campaign of benchmarks/faults.py in short: some faults of each kind, and that its judges see what goes wrong."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

if not hasattr(os, "fork"):
    pytest.skip("tries are made in forked processes", allow_module_level=True)

import faults  # noqa: E402
from fault_campaign import (  # noqa: E402
    calls,
    campaign,
    children,
    disks,
    fixtures,
    flips,
    judges,
    kills,
    long,
    races,
    scenes,
    settings,
    streams,
    writes,
)
from fault_campaign.fixtures import SCENES  # noqa: E402
from fault_campaign.judges import FAILED, LOST, SURVIVED, UNAVAILABLE, UNDETECTED, Fault  # noqa: E402

SHORT = dict(kills=14, writes=24, disks=14, flips=30, settings=40, races=10)
LONGER = dict(kills=30, writes=80, disks=30, flips=80, settings=80, corpora=30, races=15, streams=30)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return campaign.opened(tmp_path_factory.mktemp("campaign"), seed=1)


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "try"
    found.mkdir()
    return found


def run_in(folder, context, *names):
    """Fixtures, NAME or NAME=FIXTURE, in the folder of a try."""
    fixtures.place(context.fixtures, folder, names)


def verdict_of(function, *arguments):
    """The verdict that a judge comes to."""
    try:
        function(*arguments)
    except Fault as fault:
        return fault.verdict
    return SURVIVED


# Some faults of each kind


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_and_nothing_is_silent(name, context):
    rows = campaign.run([name], context, SHORT[name], jobs=2, quiet=True)
    assert len(rows) == SHORT[name]
    assert [row for row in rows if row["verdict"] != SURVIVED] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGER)
def test_nothing_is_lost_and_nothing_is_silent_in_many_tries(name, context):
    rows = campaign.run([name], context, LONGER[name], jobs=2, quiet=True)
    assert [row for row in rows if row["verdict"] not in (SURVIVED, UNAVAILABLE)] == []


# Every judge can fail


def in_place(path, chunks, report=None):
    """`write_chunks` without a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)


@pytest.mark.parametrize("kind", [kills, writes])
def test_files_that_are_written_in_place_are_lost(kind, context, folder, monkeypatch):
    for module in ("files", "checkpoint", "tensors"):
        monkeypatch.setattr(f"slm_np.formats.{module}.write_chunks", in_place)
    scenes.begin(SCENES["resume"], context, folder)
    log = folder / "log"
    assert scenes.command(SCENES["resume"], folder, setup=writes.Injection(folder, log=log)).status == 0
    number = json.loads(log.read_text(encoding="utf-8")).index(["write", "run/model.safetensors"]) + 1
    shutil.rmtree(folder)
    folder.mkdir()
    case = {kills: f"resume after operation {number}", writes: f"resume operation {number} write ENOSPC"}[kind]
    assert verdict_of(kind.attempt, case, context, folder) == LOST


def test_a_damage_with_a_repaired_checksum_is_undetected(context, folder, monkeypatch):
    from slm_np.formats.tensors import load_tensors, save_tensors

    def damaged(path, how, number):
        tensors, metadata = load_tensors(path)
        name = sorted(tensors)[0]
        tensors[name] = tensors[name] + 1
        save_tensors(path, tensors, metadata)

    monkeypatch.setattr(flips, "damage", damaged)
    case = "tuned tuned/model.safetensors flip bit 1"
    assert verdict_of(flips.attempt, case, context, folder) == UNDETECTED


def test_a_run_that_continues_with_other_bits_is_lost(context, folder):
    run_in(folder, context, "run", "seeded")
    assert verdict_of(judges.same_run, folder / "run", context.fixtures / "run", "the run") == SURVIVED
    assert verdict_of(judges.same_run, folder / "seeded", context.fixtures / "run", "the run") == LOST
    shutil.copytree(folder / "run", folder / "other")
    shutil.copy(folder / "seeded" / "model.safetensors", folder / "other")
    assert verdict_of(judges.same_run, folder / "other", context.fixtures / "run", "the run") == LOST
    (folder / "run" / "tokenizer.json").unlink()
    assert verdict_of(judges.same_run, folder / "run", context.fixtures / "run", "the run") == LOST


def test_what_was_announced_must_be_there(context, folder):
    run_in(folder, context, "half")
    said = judges.Announced("step 7/12  loss 1\nstep 6: train loss 9.0, validation loss 9.0, 3 bits/byte\n")
    assert said.checkpoint == 6 and said.best == 9.0
    assert verdict_of(said.check, folder / "half", "half") == SURVIVED
    for path in (folder / "half").glob("checkpoint-*"):
        shutil.rmtree(path)
    assert verdict_of(said.check, folder / "half", "half") == LOST
    said.checkpoint, said.best = None, 0.5
    assert verdict_of(said.check, folder / "half", "half") == LOST
    (folder / "half" / "model.safetensors").unlink()
    assert verdict_of(said.check, folder / "half", "half") == LOST


def ended(status, err="", **more):
    return children.Result(status, "", err, 0.1, 1 << 20, **more)


def test_ends_are_told_apart():
    good = "slm_np: the file x is missing; name another"
    for result, wanted in [
        (ended(0), SURVIVED),
        (ended(2, good), SURVIVED),
        (ended(2, "usage: slm-np train\nslm-np train: error: --x is missing"), SURVIVED),
        (ended(2, "nothing that is a sentence of ours"), FAILED),
        (ended(2, "slm_np: " + "x" * 1000), FAILED),
        (ended(2, "slm_np: [Errno 2] No such file"), FAILED),
        (ended(1, good), FAILED),
        (ended(-11), FAILED),
        (ended(0, "Traceback (most recent call last):\n  File\nValueError: x"), FAILED),
        (ended(0, late=True), FAILED),
        (ended(0, hung=True), FAILED),
        (ended(0, orphans=True), FAILED),
    ]:
        assert verdict_of(judges.check_end, result, "it") == wanted, result
    large = ended(0)
    large.peak = judges.MEMORY + 1
    assert verdict_of(judges.check_end, large, "it") == FAILED


def test_children_that_hang_or_leave_others_behind_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "GRACE_S", 0.2)

    def hang():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    result = children.forked_call(hang, tmp_path, limit=0.1)
    assert result.hung and result.status == -9

    def leave():
        if not os.fork():
            time.sleep(60)
            os._exit(0)

    result = children.forked_call(leave, tmp_path)
    assert result.orphans and result.status == 0
    result = children.forked_call(lambda: time.sleep(60), tmp_path, limit=0.1)
    assert result.late and result.status == -signal.SIGTERM
    result = children.forked_call(lambda: 1 / 0, tmp_path)
    assert result.status == 1 and "ZeroDivisionError" in result.err
    result = children.forked_call(lambda: sys.exit(7), tmp_path)
    assert result.status == 7


def test_a_command_that_does_nothing_has_lost_its_output(context, folder, monkeypatch):
    monkeypatch.setattr(scenes, "command", lambda *arguments, **options: ended(0))
    monkeypatch.setattr(children, "forked", lambda *arguments, **options: ended(0))
    assert verdict_of(disks.attempt, "prepare files of at most 100000 bytes", context, folder) == LOST


@pytest.mark.parametrize("result, wanted", [(ended(1), FAILED), (ended(0), LOST)])
def test_a_command_that_dies_of_a_stream_fails(result, wanted, context, folder, monkeypatch):
    monkeypatch.setattr(streams, "run", lambda *arguments: result)
    assert verdict_of(streams.attempt, "train stdout-closed", context, folder) == wanted


def test_a_traceback_about_a_mutated_file_fails(context, folder, monkeypatch):
    def broken(run_dir):
        raise ValueError("a bug")

    monkeypatch.setattr("slm_np.formats.sources.read_config", broken)
    assert verdict_of(settings.attempt, "half/run.json mutation 0", context, folder) == FAILED


def test_two_writers_are_lost(context, folder):
    run_in(folder, context, "run")
    both = [ended(0), ended(0)]
    assert verdict_of(races.judge, "train+train", context, folder, both, ("run", "seeded")) == LOST
    assert verdict_of(races.judge, "resume+resume", context, folder, both, ("run", "run")) == SURVIVED
    refused = [ended(0), ended(2, "slm_np: it does not work; do something")]
    assert verdict_of(races.judge, "train+train", context, folder, refused, ("run", "seeded")) == FAILED
    neither = [ended(2, "slm_np: a process holds it; wait")] * 2
    assert verdict_of(races.judge, "train+train", context, folder, neither, ("run", "seeded")) == LOST
    metrics = folder / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert verdict_of(races.judge, "resume+resume", context, folder, both, ("run", "run")) == LOST


def test_calls_that_crash_or_raise_are_seen(context, folder, monkeypatch):
    for changes, wanted in [
        ({}, SURVIVED),
        (dict(crashed="Call(entry='load')"), LOST),
        (dict(failures=["Call(): a wrong x is accepted"]), UNDETECTED),
        (dict(failures=["Call(): ZeroDivisionError: x"]), FAILED),
        (dict(tried=99), FAILED),
    ]:
        found = dict(tried=100, failures=[], crashed="") | changes
        monkeypatch.setattr(calls, "fuzz", lambda found=found: lambda n, start, timeout: found)
        assert verdict_of(calls.attempt, "100 calls from 0", context, folder) == wanted


def test_slow_work_is_seen(context, folder, monkeypatch):
    seconds = iter((1.0, 4.0))
    monkeypatch.setattr(
        children, "forked", lambda *words, **options: children.Result(0, "", "", next(seconds), 1 << 20)
    )
    assert verdict_of(long.linear, "dna", folder) == FAILED


def test_injected_faults_reach_the_command(context, folder):
    """An operation that fails is one of the command's, and the operations are counted alike each time."""
    _, operations = scenes.measured("convert", context)
    assert {"open", "write", "fsync", "rename"} <= {operation for operation, _ in operations}
    before = scenes.begin(SCENES["convert"], context, folder)
    assert before.keys() == {"model.bin", "tok.bin"}
    number = [operation for operation, _ in operations].index("rename") + 1
    result = scenes.command(SCENES["convert"], folder, setup=writes.Injection(folder, number, 5))
    assert result.status == 2 and "input/output error" in result.err.lower()


# The command


def test_outcomes_are_kept_and_counted(context, monkeypatch, capsys):
    tried = []

    def attempt(case, context, folder):
        tried.append(case)
        if case == "b":
            raise Fault(LOST, "gone")
        if case == "c":
            raise Fault(UNAVAILABLE, "not here")
        if case == "d":
            raise ZeroDivisionError

    monkeypatch.setattr(kills, "cases", lambda context: list("abcd"))
    monkeypatch.setattr(kills, "attempt", attempt)
    here = campaign.Context(context.work, seed=7)
    rows = campaign.run(["kills"], here, quiet=True)
    assert [row["verdict"] for row in rows] == [SURVIVED, LOST, UNAVAILABLE, FAILED]
    assert campaign.table(rows)[-1] == "| together | 3 | 1 | 1 | 1 | 0 |"
    assert [line for line in campaign.faults(rows) if "gone" in line] == ["lost, 1 of `kills`: gone"]
    monkeypatch.setattr(kills, "attempt", None)  # a second start makes no try again
    assert campaign.run(["kills"], here, quiet=True) == rows
    file = here.work / "outcomes-7.jsonl"
    other = json.dumps(dict(json.loads(file.read_text(encoding="utf-8").splitlines()[0]), source="other", case="z"))
    file.write_text(other + '\n{"kind": "ki', encoding="utf-8")
    assert campaign.Outcomes(here).found == {}


def test_unknown_kinds_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        faults.main(["--only", "kils"])
    assert stopped.value.code == 2 and "did you mean kills?" in capsys.readouterr().err


def test_every_kind_names_its_tries(context):
    for name in campaign.KINDS:
        module = campaign.kind_named(name)
        found = module.cases(context)
        assert len(set(found)) == len(found) > 0
        assert module.TRIES is None or len(found) <= module.TRIES
