"""The campaign of benchmarks/rank_campaign.py in short: some faults, and that its judges see what goes wrong."""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

if not sys.platform.startswith("linux"):
    pytest.skip("the campaign reads the states of processes from /proc", allow_module_level=True)

import rank_campaign  # noqa: E402
from fault_campaign import children, places, rank_runs  # noqa: E402
from fault_campaign.judges import LOST, Fault  # noqa: E402

SEED = 16  # its four faults hit all places, by both signals
NAMED = "slm_np: rank 1 (process 12 on host) died"


def a_row(saved=8, fired=1.0, **more):
    return rank_runs.Row(0, 4, "SIGKILL", 1, "compute", "compute", saved, fired, **more)


# Some faults


@pytest.mark.slow
def test_nothing_is_lost_when_ranks_are_killed_and_stopped(tmp_path, monkeypatch):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    monkeypatch.setattr(rank_campaign, "PER_RUN", 2)  # two runs, side by side
    args = argparse.Namespace(faults=4, stops=0.5, seed=SEED, silence=3.0, jobs=2, folder=str(tmp_path / "campaign"))
    found = rank_campaign.campaign(args, quiet=True)
    assert found["wrong"] == []
    assert [run["faults"] for run in found["runs"]] == [2, 2]
    assert all(row["named"] and row["resumed"] >= row["saved"] for row in found["rows"])
    assert {row["aimed"] for row in found["rows"]} >= {"compute", "exchange", "checkpoint"}
    assert {row["signal"] for row in found["rows"]} == {"SIGKILL", "SIGSTOP"}
    assert any(row["restarted"] for row in found["rows"]), "some launch goes on with half of its ranks"


def test_the_short_campaign_covers_all_places_and_signals():
    plans = [rank_runs.plan(random.Random(f"{SEED} {number}"), 2, 0.5) for number in range(2)]
    assert {fault.place for plan in plans for fault in plan} >= {"compute", "exchange", "checkpoint"}
    assert {fault.signal for plan in plans for fault in plan} == {signal.SIGKILL, signal.SIGSTOP}


# What it judges by


def test_a_run_that_goes_on_from_an_older_checkpoint_is_lost():
    rows = [a_row(saved=8), a_row(saved=4), a_row(saved=4, fired=3.0)]
    lines = [(0.5, "resuming in run from step 0"), (2.0, "resuming in run from step 4")]
    rank_runs.settle(rows, lines)
    assert [row.resumed for row in rows] == [4, 4, None]
    assert "checkpoint 8 is lost" in rows[0].wrong and not rows[1].wrong
    rank_runs.settle(rows, [(4.0, "run in run")])  # begun anew
    assert rows[2].resumed == 0 and "checkpoint 4 is lost" in rows[2].wrong


@pytest.mark.parametrize(
    "line, named",
    [
        (NAMED, ("1", "12")),
        ("slm_np: rank 3 (process 7 on host) has sent no heartbeat for 15 s, so all ranks end", ("3", "7")),
        ("slm_np: process 7 died", None),
        ("slm_np: rank 3 (process 7 on host) ended", None),
    ],
)
def test_lines_that_name_a_lost_rank(line, named):
    match = rank_runs.LOST_RANK.search(line)
    assert (match and match.groups()[:2]) == named


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    rank_runs.prepare(folder)
    rank_runs.undisturbed(folder, 1)
    return folder


def verdict(run, expected):
    try:
        rank_runs.same(run, expected, rank_runs.updates(1))
    except Fault as fault:
        return fault.verdict
    return ""


def test_a_run_with_other_bits_or_metrics_is_lost(undisturbed, tmp_path):
    expected, run = undisturbed / "run", tmp_path / "run"
    shutil.copytree(expected, run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[3] |= dict(step_ms=1e6, waiting=0.5)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert not verdict(run, expected), "times may differ"
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]), encoding="utf-8")
    assert verdict(run, expected) == LOST
    rows[3]["loss"] += 1e-9
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert verdict(run, expected) == LOST
    shutil.copy(expected / "metrics.jsonl", run)
    assert not verdict(run, expected)
    last, before = (run / f"checkpoint-{rank_runs.updates(1) - n * rank_runs.SAVE_INTERVAL}" for n in (0, 1))
    shutil.rmtree(last)
    shutil.copytree(before, last)
    assert verdict(run, expected) == LOST


def test_processes_that_are_left_over_are_found():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    rank = places.Rank(0, process.pid, None)
    assert not rank_runs.all_end([rank], 0)
    assert process.wait(children.GRACE_S) == -signal.SIGKILL
    assert rank_runs.all_end([rank], 0)


def test_a_rank_notes_its_place_until_it_is_killed(tmp_path):
    (tmp_path / "places").mkdir()
    hook = places.hook(tmp_path / "hook")
    text = (
        "import time\nfrom fault_campaign import places\nnote = places.Note()\nnote.create(3)\n"
        "note.place = 'compute'\nnote.updates += 1\nnote.updates += 1\n"
        "note.inside('exchange', time.sleep)(60)\n"
    )
    env = children.environment(**{places.FOLDER: str(tmp_path / "places")})
    env["PYTHONPATH"] = os.pathsep.join([hook, env["PYTHONPATH"]])
    process = subprocess.Popen([sys.executable, "-c", text], env=env)
    deadline = time.monotonic() + 20
    try:
        while not (ranks := places.ranks(tmp_path / "places")) or ranks[0].read()[0] != "exchange":
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    [rank] = ranks
    assert (rank.number, rank.process, rank.read()) == (3, process.pid, ("exchange", 2))


def test_the_table_counts_and_the_command_fails_if_anything_is_lost(monkeypatch, capsys, tmp_path):
    rows = [a_row(named=True, resumed=8, restarted=True).as_dict(), a_row(resumed=4, wrong="it is lost").as_dict()]
    runs = [dict(run=0, faults=2, wrong="")]
    found = dict(faults=2, stops=0.5, seed=1, silence=3.0, seconds=60.0, rows=rows, runs=runs, wrong=["run 0: lost"])
    monkeypatch.setattr(rank_campaign, "campaign", lambda args: found)
    with pytest.raises(SystemExit) as stopped:
        rank_campaign.main(["--json", str(tmp_path / "found.json")])
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert "| compute | SIGKILL | 2 | 1 | 2 | 1 |" in said and "WRONG: run 0: lost" in said
    assert "1 restarts by --restarts, 1 by --resume; 2 faults in 4 ranks" in said
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == found
    found["wrong"] = []
    rank_campaign.main([])


@pytest.mark.parametrize("flags", ["--faults 0", "--stops 2", "--silence 0"])
def test_flags_without_a_meaning_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        rank_campaign.main(flags.split())
    assert stopped.value.code == 2 and "slm_np: --faults and --silence" in capsys.readouterr().err
