"""Progress of long work in a log: how many lines, and what they say."""

import pytest
import small

from slm_np import progress
from slm_np.data import meter
from slm_np.data.meter import Meter
from slm_np.progress import Progress
from slm_np.training.display import Display


class Clock:
    """A time module whose clocks stand still unless they are moved."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (progress, meter):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(progress, "interactive", lambda: False)
    return clock


def lines_after(clock, capsys, shown, seconds):
    """The labels that a Progress of 100 updates prints if each takes so many seconds."""
    for step in range(1, 101):
        clock.now += seconds
        shown.update(f"step {step}", step / 100, "", True)
    return [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]


def test_the_first_and_the_last_update_have_a_line_and_few_between_them(clock, capsys):
    assert lines_after(clock, capsys, Progress(0.0), 0.001) == ["step 1", "step 100"]
    assert lines_after(clock, capsys, Progress(0.0), 0.125)[:3] == ["step 1", "step 17", "step 33"]
    assert len(lines_after(clock, capsys, Progress(0.0), 60.0)) == 100


def test_short_work_that_waits_for_its_first_line_prints_none(clock, capsys):
    assert lines_after(clock, capsys, Progress(0.0, wait=10.0), 0.0625) == []
    assert lines_after(clock, capsys, Progress(0.0, wait=10.0, every=10.0), 0.25) == ["step 40", "step 80", "step 100"]
    assert lines_after(clock, capsys, Progress(0.0, quiet=True), 60.0) == []


def test_a_line_says_when_the_work_will_be_done(clock, capsys):
    shown = Progress(0.5)  # of a run that is resumed
    clock.now += 30.0
    shown.update("step 6", 0.6, "loss 1.0", True)
    assert capsys.readouterr().err == "step 6  loss 1.0  ETA 2m00s\n"
    with Meter(4_000_000, "tokenizing", done=1_000_000) as bytes_read:
        clock.now += 6.0
        bytes_read.update(1_000_000)
    assert capsys.readouterr().err == "tokenizing: 2 of 4 MB, ETA 12s\n"


@pytest.mark.usefixtures("one_thread")
def test_a_run_has_few_lines_and_all_rows(clock, tmp_path, capsys):
    trainer = small.trainer(small.text_file(tmp_path), tmp_path / "run", log_interval=1)
    trainer.callbacks.append(Display())
    trainer.train()
    steps = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines() if "ETA" in line]
    assert steps == ["step 1/12", "step 12/12"]
    assert [row["step"] for row in small.rows(tmp_path / "run") if "loss" in row] == list(range(1, 13))
