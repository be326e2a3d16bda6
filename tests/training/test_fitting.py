"""--fit-time: the number of updates is fitted to a time, and then the run has the bits of one with --max-iters."""

import dataclasses
import math
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import small

from slm_np.config import TrainConfig
from slm_np.errors import UserError
from slm_np.formats import checkpoint, metrics, run_config
from slm_np.presets import PRESETS, preset
from slm_np.training.callbacks import Callback
from slm_np.training.display import Display
from slm_np.training.fitting import Stopwatch, fitted_updates, interval_of
from slm_np.training.signals import Interrupted
from slm_np.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
# The intervals fit the run, and every update is logged.
FITTED = dict(fit_time="4s", warmup_iters=20, eval_interval=0, save_interval=0, log_interval=1, learning_rate=1e-2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small.text_file(tmp_path_factory.mktemp("data"))


@pytest.fixture
def clock(monkeypatch):
    """An update takes three looks at the clock: 12 ms. So 18 updates are timed."""
    clock = small.Clock(0.004)
    monkeypatch.setattr("slm_np.ranks.world.time", clock)
    return clock


class StopAt(Callback):
    """Stops the run by a signal after so many updates."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.updates == self.step:
            signal.raise_signal(signal.SIGINT)


def resumed(directory, data, **changes):
    """A Trainer of the run in `directory`, at its newest checkpoint."""
    run = run_config.read_config(directory)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, **changes))
    trainer = Trainer(run, small.trainer(data).corpus, fresh=False)
    small.resume(trainer, directory)
    return trainer


# How many updates


@pytest.mark.parametrize("repeated", [[], [(0, 0.3), (0, 0.02)], [(25, 0.5), (10, 0.1)], [(1, 0.05)]])
@pytest.mark.parametrize("done, seconds, update", [(0, 10.0, 0.1), (13, 87.0, 0.02), (50, 20.0, 0.31), (7, 3.0, 0.9)])
def test_the_most_updates_that_fit(done, seconds, update, repeated):
    def needed(updates):
        total = (updates - done) * update
        for setting, cost in repeated:
            interval = interval_of(setting, updates)
            total += cost * len({step for step in range(done + 1, updates + 1) if step % interval == 0} | {updates})
        return total

    found = fitted_updates(done, seconds, update, repeated)
    least = done + int(0.5 * seconds / update)
    assert found >= least - 9 and (needed(found) <= seconds or found <= least)
    assert needed(found + 11) > seconds
    assert found <= 200 or found % 10 == 0


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_when_the_time_is_over_no_update_follows(seconds):
    assert fitted_updates(17, seconds, 0.1, [(0, 3.0)]) == 17
    assert fitted_updates(1013, seconds, 0.1, []) == 1013


def test_an_interval_of_zero_is_a_tenth_of_the_run():
    assert [interval_of(0, updates) for updates in (1050, 1051, 200, 150, 3, 0)] == [105, 106, 20, 20, 20, 20]
    assert interval_of(7, 1050) == 7


# How fast


def stopwatch(**changes):
    return Stopwatch(TrainConfig(**{"fit_time": "90s", **changes}))


def test_the_speed_is_the_mean_of_the_later_half_without_long_interruptions():
    watch, now = stopwatch(), 0.0
    for updates in range(21):
        watch.start(updates, now)
        watch.mark(updates + 1, now := now + (9.0 if updates < 10 else {15: 60.0, 16: 0.5}.get(updates, 0.25)))
    assert watch.seconds_per_update() == pytest.approx((9 * 0.25 + 0.5 + 3 * 0.25) / 11)


def test_between_synchronizations_the_updates_share_the_time():
    watch = stopwatch()
    watch.start(0, 100.0)
    for updates, now in ((10, 160.0), (20, 162.0), (30, 165.0), (40, 167.0)):
        watch.mark(updates, now)
    assert watch.seconds_per_update() == pytest.approx(0.25)


def measured(updates_per_second, **changes):
    """The updates and the seconds after which the stopwatch has enough."""
    watch = stopwatch(**changes)
    watch.start(0, 0.0)
    for updates in range(1, 10**6):
        watch.mark(updates, updates / updates_per_second)
        if watch.enough():
            return updates, updates / updates_per_second


def test_how_long_the_speed_is_measured():
    assert measured(10) == (30, 3.0)
    assert measured(2) == (10, 5.0)  # at least ten updates
    assert measured(0.5) == (6, 12.0)  # which may not take more than an eighth of the time
    assert measured(0.01) == (1, 100.0)
    assert measured(1000, fit_time="20s") == (1000, 1.0)
    assert measured(100, fit_time="1s") == (10, 0.1)


def test_up_to_which_update_the_rate_does_not_depend_on_the_number():
    assert stopwatch(warmup_iters=30).last == 30
    assert stopwatch(warmup_iters=30, lr_schedule="stable-decay").last == 30
    assert stopwatch(lr_schedule="constant").last == stopwatch(lr_decay_iters=500).last == math.inf


# Runs


def assert_same_run(one, two, step):
    small.assert_same_state(one, two, step)
    assert small.rows(one) == small.rows(two)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


RECURRENT = dict(pattern="S", positions="none", recurrence_size=12, carry_state=True, max_spectral_norm=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        dict(lr_schedule="cosine", dropout=0.1),
        dict(lr_schedule="stable-decay"),
        dict(lr_schedule="constant"),
        dict(lr_decay_iters=100),
        dict(warmup_iters=0, dropout=0.1),
        dict(warmup_iters=9, **RECURRENT),
    ],
    ids=lambda changes: " ".join(changes),
)
def test_a_fitted_run_has_the_bits_of_one_with_that_many_updates(tmp_path, data, clock, changes):
    settings = FITTED | changes
    fitted, counted = tmp_path / "fitted", tmp_path / "counted"
    trainer = small.trainer(data, fitted, **settings)
    trainer.train()
    n = trainer.max_iters
    assert n == trainer.updates == run_config.read_config(fitted).fitted_iters > 200
    small.trainer(data, counted, **dict(settings, fit_time="", max_iters=n)).train()
    assert_same_run(fitted, counted, n)
    evaluations = [row["step"] for row in metrics.read_metrics(fitted) if "val_loss" in row]
    assert evaluations == [n // 10 * tenth for tenth in range(1, 11)]
    if settings["warmup_iters"] == 20:  # an update that is undone takes less time by this clock
        assert 0.95 * 4 < trainer.elapsed < 1.05 * 4


@pytest.mark.parametrize("steps", [(5,), (5, 9), (18,), (19,), (5, 150), (290,)], ids=str)
def test_a_stopped_run_measures_until_the_number_is_fixed_and_then_keeps_it(tmp_path, data, clock, steps):
    run, trainer = tmp_path / "run", small.trainer(data, tmp_path / "run", **FITTED)
    for step in steps:
        trainer.callbacks.append(StopAt(step))
        with pytest.raises(Interrupted):
            trainer.train()
        fixed = run_config.read_config(run).fitted_iters
        assert bool(fixed) == (step > 18) and checkpoint.newest_checkpoint(run).step == step
        clock.tick *= 1.5  # on a slower machine the number stays
        trainer = resumed(run, data)
    trainer.train()
    n = trainer.max_iters
    assert n == trainer.updates == run_config.read_config(run).fitted_iters and (not fixed or n == fixed)
    small.trainer(data, tmp_path / "counted", **dict(FITTED, fit_time="", max_iters=n)).train()
    assert_same_run(run, tmp_path / "counted", n)


def test_a_run_killed_after_the_number_is_fixed_keeps_it(tmp_path, data, clock):
    class Kill(Callback):
        def on_step(self, trainer):
            if trainer.updates == 20:
                raise KeyboardInterrupt

    trainer = small.trainer(data, tmp_path / "run", **FITTED)
    trainer.callbacks.append(Kill())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    clock.tick *= 2
    again = resumed(tmp_path / "run", data)
    assert again.max_iters == trainer.max_iters > 200 and again.updates == 18


def test_a_signal_while_updates_are_timed_and_undone(tmp_path, data, clock):
    trainer, steps = small.trainer(data, tmp_path / "run", **dict(FITTED, warmup_iters=4)), []
    step = trainer.step

    def interrupting():
        steps.append(trainer.updates)
        if len(steps) == 8:
            signal.raise_signal(signal.SIGINT)
        return step()

    trainer.step = interrupting
    with pytest.raises(Interrupted):
        trainer.train()
    assert steps == [*range(8)] and trainer.updates == checkpoint.newest_checkpoint(tmp_path / "run").step == 4
    small.trainer(data, tmp_path / "counted", **dict(FITTED, warmup_iters=4, fit_time="", max_iters=4)).train()
    small.assert_same_state(tmp_path / "run", tmp_path / "counted", 4, but=small.EVALUATIONS)


def test_a_machine_too_slow_for_ten_updates(tmp_path, data, monkeypatch):
    monkeypatch.setattr("slm_np.ranks.world.time", small.Clock(0.3))  # an update takes almost a second
    trainer = small.trainer(data, tmp_path / "run", **FITTED)
    trainer.train()
    assert 2 <= trainer.updates == trainer.max_iters <= 4
    assert [row["step"] for row in metrics.read_metrics(tmp_path / "run") if "val_loss" in row] == [trainer.updates]
    monkeypatch.setattr("slm_np.ranks.world.time", small.Clock(30))  # one update takes more than all the time
    trainer = small.trainer(data, tmp_path / "slower", **FITTED)
    trainer.train()
    assert trainer.updates == trainer.max_iters == 1
    assert checkpoint.load_best(tmp_path / "slower")[1]["step"] == "1"


def test_patience_ends_a_fitted_run(data, clock):
    trainer = small.trainer(data, **dict(FITTED, patience=2, learning_rate=0.0, min_lr=0.0))
    trainer.train()
    assert trainer.updates == 3 * interval_of(0, trainer.max_iters) < trainer.max_iters


def test_evaluations_of_a_run_that_follows_the_clock_come_with_each_tenth_of_its_time(tmp_path, data, clock):
    trainer = small.trainer(data, tmp_path / "run", **dict(FITTED, fit_time="", max_time="4s"))
    trainer.train()
    times = [row["time_s"] for row in metrics.read_metrics(tmp_path / "run") if "val_loss" in row]
    np.testing.assert_allclose(times, np.arange(1, 11) * 0.4, atol=0.05)


def test_a_fitted_run_on_epochs_of_conversations(tmp_path, clock):
    """Their windows are shuffled whatever the length is."""
    rows = ['{"prompt": "what is %d?", "completion": " it is %d."}\n' % (i, i) for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    trainer = small.trainer(tmp_path / "rows.jsonl", vocab_size=257, **FITTED)
    trainer.train()
    assert trainer.updates == trainer.max_iters > 200


# Settings


@pytest.mark.parametrize("given", [dict(max_iters=5), dict(max_iters=0), dict(epochs=1.0), dict(max_time="3s")])
def test_another_length_replaces_the_presets_time(given):
    assert preset("stories")[1].fit_time == "90s"
    train = preset("stories", train=given)[1]
    assert train.fit_time == "" and {field: getattr(train, field) for field in given} == given
    assert (train.eval_interval, train.save_interval) == (0, 0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_evaluates_and_saves_after_each_tenth(name):
    for length in ({}, dict(fit_time="3m"), dict(max_iters=7)):
        train = preset(name, train=length)[1]
        assert (train.eval_interval, train.save_interval) == (0, 0)
        assert train.fit_seconds == 180.0 or length != dict(fit_time="3m")
    assert preset(name, train=dict(fit_time="3m", eval_interval=9))[1].eval_interval == 9


@pytest.fixture
def folder(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_fitted_run_from_the_command_line(folder, data, capsys):
    flags = small.flags(data, **dict(FITTED, max_iters=None, fit_time="0.5s", out_dir="run", log_interval=10))
    assert small.status("train", *flags) == 0
    run = run_config.read_config("run")
    n, shown = run.fitted_iters, capsys.readouterr().err
    assert f"\n{n:,} updates, about 0.5 s on this machine\n" in shown
    assert f"\nstep {n // 10 * 10}/{n}  loss" in shown
    assert checkpoint.newest_checkpoint("run").step == n

    assert small.status("info", "run") == 0
    assert f"{n:,} updates (of {n:,}, fitted to 0.5s)" in capsys.readouterr().out

    assert small.status("train", "--resume", "run") == 0  # finished: only the report comes again
    assert run_config.read_config("run") == run and checkpoint.newest_checkpoint("run").step == n

    for length in ("--epochs", "2"), ("--max-time", "9s"):
        capsys.readouterr()
        assert small.status("train", "--resume", "run", *length) == 2
        assert f"run is trained for --fit-time 0.5s, not for {length[0]}" in capsys.readouterr().err

    assert small.status("train", "--resume", "run", "--fit-time", "2s") == 0  # longer, by the speed so far
    longer = run_config.read_config("run").fitted_iters
    assert longer > n and checkpoint.newest_checkpoint("run").step == longer
    assert small.status("train", "--resume", "run", "--max-iters", longer + 4) == 0
    run = run_config.read_config("run")
    assert (run.train.fit_time, run.fitted_iters, run.train.max_iters) == ("", 0, longer + 4)
    assert checkpoint.newest_checkpoint("run").step == longer + 4


def test_the_display_follows_the_time_before_the_number_is_known(data, clock, monkeypatch, capsys):
    from slm_np import progress

    monkeypatch.setattr(progress, "interactive", lambda: True)
    trainer = small.trainer(data, **FITTED)
    trainer.callbacks.append(Display())
    seen = []
    monkeypatch.setattr(progress.Progress, "update", lambda self, step, fraction, *rest: seen.append((step, fraction)))
    trainer.train()
    n = trainer.max_iters
    assert [step for step, _ in seen[:19]] == [f"step {i}" for i in range(1, 19)] + [f"step 19/{n}"]
    fractions = [fraction for _, fraction in seen]
    assert fractions[17] == pytest.approx(18 * 0.012 / 4, rel=0.2) and fractions[-1] == 1.0
    assert np.diff(fractions).min() > -0.02
    assert f"{n:,} updates, about 4 s on this machine" in capsys.readouterr().err


def test_finetuning_for_a_time(folder, data, clock):
    assert small.status("train", *small.flags(data, out_dir="base")) == 0
    words = ["finetune", "--base", "base", "--data", data, "--fit-time", "3s", "--out-dir", "tuned", "--eval-iters", 1]
    assert small.status(*words) == 0
    run = run_config.read_config("tuned")
    assert (run.train.epochs, run.train.eval_interval) == (0.0, 0) and run.fitted_iters > 100
    steps = [row["step"] for row in metrics.read_metrics("tuned") if "val_loss" in row]
    assert steps[0] == 0 and steps[-1] == run.fitted_iters and 10 <= len(steps) <= 11


@pytest.mark.parametrize("value", [-1, 0.5, "7", None, math.inf])
def test_a_broken_number_in_config_json(tmp_path, value):
    from slm_np.formats.checksum import read_settings
    from slm_np.formats.files import write_json

    run_config.write_config(tmp_path, small.config("x"))
    fields = read_settings(tmp_path / "run.json")
    assert fields["fitted_iters"] == 0
    write_json(tmp_path / "run.json", {**fields, "fitted_iters": value if value != math.inf else 10**10})
    with pytest.raises(UserError, match="for 'fitted_iters'; it must be a number of updates"):
        run_config.read_config(tmp_path)
    del fields["fitted_iters"]  # as an older version wrote it
    write_json(tmp_path / "run.json", fields)
    assert run_config.read_config(tmp_path).fitted_iters == 0


def test_updates_are_timed_when_the_corpus_is_complete(data, clock, monkeypatch):
    """While workers tokenize, they take a part of the cores. At the last update that may be timed, training waits."""
    begun, fit = [], Trainer.fit

    def recorded(self, started):
        begun.append(self.stopwatch.marks[0][0] if self.stopwatch.marks else self.updates)
        fit(self, started)

    class Built(Callback):
        def on_step(self, trainer):
            if trainer.updates == done:
                building.ended.set()

    monkeypatch.setattr(Trainer, "fit", recorded)
    for done in (5, 30):  # before and after the last update that may be timed, 20
        building = SimpleNamespace(ended=threading.Event(), check=lambda: None, corpus=None)
        building.wait = building.ended.set
        trainer = small.trainer(data, **FITTED)
        trainer.corpus = dataclasses.replace(trainer.corpus, building=building)
        trainer.callbacks.append(Built())
        trainer.train()
        assert building.ended.is_set()
    assert begun == [4, 20]
