"""The training loop: step, log, evaluate, save, stop. A run resumes after any update with the same bits.

The parts live apart: state.py has one update, batches.py the data, fitting.py the length that --fit-time means,
storage.py the files, display.py the lines on the screen, signals.py Ctrl-C.
"""

import dataclasses
import math

from slm_np.data.growing import CorpusFailed
from slm_np.errors import UserError
from slm_np.formats.checksum import crc32
from slm_np.ops.device import host, put
from slm_np.ranks.world import ALONE
from slm_np.training.evaluation import bits_per_byte, mean_loss
from slm_np.training.fitting import FEWEST, TENTHS, Stopwatch, fitted_updates, interval_of
from slm_np.training.signals import Interrupted, stop_signals
from slm_np.training.state import TrainingState

MAX_SKIPPED = 5  # skipped updates in a row that end a run
COMPARED = 100  # updates between comparisons of the ranks' weights


class Trainer(TrainingState):
    """Trains a new model on a corpus: `step()` makes one update, `train()` is the whole run.

    run        RunConfig
    corpus     Corpus of `load_corpus`
    callbacks  see callbacks.py; without any, nothing is written and nothing printed
    retention  Tokens of other data to evaluate, too, or None
    fresh      False leaves the weights 0, to be filled by a checkpoint or a base
    world      World of the processes that train together; only that of rank 0 has callbacks

    Raises UserError for settings that do not fit the model or the corpus.
    """

    def __init__(self, run, corpus, callbacks=(), retention=None, fresh=True, world=ALONE):
        super().__init__(run, corpus, retention, fresh, world)
        self.callbacks = list(callbacks)
        self.skipped = 0  # updates skipped in a row, as far as the host knows
        self.best = math.inf  # lowest validation loss, in nats per token
        self.stale = 0  # evaluations since then
        self.evaluated = -1  # the step of the last evaluation
        self.timed_steps, self.timed_seconds = 0, 0.0  # since the last line of the log
        self.timed_waiting = 0.0  # seconds of these in which this rank waited for others
        self.stopwatch = None  # of the first updates, until their number is fitted to a time
        self.tenth_done = False  # whether the last update completed a tenth of the run's time
        self.stop_signal = None

    def load_from_rank_0(self):
        """Take over weights, moments and counters of rank 0, which has loaded them."""
        step, counters, run = self.everyone.on_rank_0(lambda: (self.updates, self.counters(), self.run))
        if self.everyone.size > 1:
            self.everyone.broadcast([self.model.parameters.weights, *self.tensors().values()])
        if self.everyone.rank:
            self.run = run
        if self.everyone.rank or self.rounds:
            self.load(step, counters)

    def train(self):
        """Train to the end: the last update or second, or `patience` evaluations without a lower validation loss.

        Raises Interrupted after SIGINT, SIGTERM or SIGHUP, UserError after MAX_SKIPPED skipped updates in a row, and
        CorpusFailed if the corpus is still being tokenized and that fails. A checkpoint is saved first.
        """
        self.stop_signal, started = None, self.world.clock() - self.elapsed
        self.stopwatch = Stopwatch(self.config) if self.max_iters is None else None
        self.notify("on_start")
        try:
            with stop_signals(self.request_stop):
                while True:
                    before, self.elapsed = self.progress, self.world.clock() - started
                    self.tenth_done = int(TENTHS * before) < int(TENTHS * self.progress)
                    if self.stopwatch is not None:
                        self.time_without_builder()
                        if self.stopwatch.enough() or self.updates >= self.stopwatch.last:
                            self.fit(started)
                    if self.is_due(self.config.save_interval) or self.finished():
                        self.save()
                    if self.evaluation_is_due():
                        self.evaluate()
                    if self.finished():
                        break
                    self.check_stop()
                    self.wait_for_data()
                    self.advance()
                    self.check_stop()
            self.compare_ranks()
            self.save()
        except (Interrupted, CorpusFailed):
            self.save()
            raise
        finally:
            self.notify("on_end")

    def advance(self):
        """One update, timed and logged. UserError after MAX_SKIPPED skipped ones in a row, with the weights saved."""
        started = self.world.clock()
        if self.stopwatch is not None:
            self.stopwatch.start(self.updates, started)
        if self.updates % COMPARED == 0:
            self.compare_ranks()
        waited = self.everyone.waited
        _, _, rate = self.step()
        if self.rounds and (self.updates % self.config.sync_every == 0 or self.finished()):
            self.end_round()
        last_timed = self.stopwatch is not None and self.updates == self.stopwatch.last
        result = self.stepper.read(wait=self.log_is_due() or last_timed)
        self.timed_waiting += self.everyone.waited - waited
        now = self.world.clock()
        self.timed_steps, self.timed_seconds = self.timed_steps + 1, self.timed_seconds + now - started
        if self.stopwatch is not None and result is not None:
            self.stopwatch.mark(self.updates, now)
        self.skipped = result.skipped if result else 0
        if self.log_is_due() or self.skipped:
            self.notify("on_log", self.log_row(result, rate))
        self.notify("on_step")
        if self.log_is_due():
            self.timed_steps, self.timed_seconds, self.timed_waiting = 0, 0.0, 0.0
        if self.skipped >= MAX_SKIPPED:
            self.stepper.load(self.stepper.state() | dict(bad_steps=0))  # a resumed run may skip as many again
            if not self.rounds:
                self.save()
            self.world.max_over_ranks(0)  # waits until rank 0 has saved
            where = "in the last checkpoint" if self.rounds else "saved"
            raise UserError(
                f"{MAX_SKIPPED} updates in a row had a loss or gradient that is not finite; the last good weights are "
                f"{where}, resume with a lower --learning-rate or --grad-clip"
            )

    def end_round(self):
        """The end of a round: the weights become those that all ranks continue from."""
        self.updates = self.rounds.end_round(self.updates)
        self.model.parameters.update_cast_copies()
        if self.rounds.left_out:
            self.notify("on_left_out", self.rounds.left_out)

    def compare_ranks(self):
        """UserError, naming a rank, if its weights are not those of rank 0."""
        if self.world.size > 1:
            sum_of_weights = crc32(self.model.parameters.weights)
            self.world.check_same({"step": self.updates, "checksum of the weights": sum_of_weights})

    def log_row(self, result, rate):
        """The metrics of the last update: its result, the speed since the last row, and any spectral norms."""
        seconds = self.timed_seconds / self.timed_steps
        row = dict(
            step=self.updates,
            loss=result.loss,
            lr=rate,
            grad_norm=result.norm,
            step_ms=round(1e3 * seconds, 3),
            tokens_per_s=round(self.tokens.size * self.deal.micro_batches / seconds, 1),
        )
        if self.everyone.size > 1:
            row["waiting"] = round(self.timed_waiting / self.timed_seconds, 4)  # share of the time
        norms = [round(norm, 6) for norm in self.spectral.norms.values()]
        return row | (dict(spectral_norms=norms) if norms else {})

    def time_without_builder(self):
        """Begin to time updates again while the corpus is being tokenized, which takes a part of the cores."""
        building = self.corpus.building
        if building and not building.ended.is_set():
            if self.updates >= self.stopwatch.last:
                building.wait()
            self.stopwatch = Stopwatch(self.config)

    def fit(self, started):
        """Fix the number of updates, so that the run takes `fit_time` from `started` on.

        Between updates the run evaluates and saves, so both are tried once, the evaluation with one batch per split.
        """
        if not self.stopwatch.enough():
            self.time_more()
        begun = self.world.clock()
        self.save()
        saved = self.world.clock()
        self.estimate_loss(1)
        now = self.world.clock()
        saving, evaluating = saved - begun, self.config.eval_iters * (now - saved)
        self.max_iters = fitted_updates(
            self.updates,
            self.config.fit_seconds - (now - started),
            self.stopwatch.seconds_per_update(),
            [(self.config.save_interval, saving), (self.config.eval_interval, evaluating)],
        )
        self.run, self.stopwatch = dataclasses.replace(self.run, fitted_iters=self.max_iters), None
        self.notify("on_fit")

    def time_more(self):
        """Time further updates, then undo them, since their learning rate depends on the number that is not known."""
        step, counters = self.updates, self.counters()
        arrays = [*self.model.parameters.trained.values(), *self.tensors().values()]
        kept = [host(array).copy() for array in arrays]
        self.stopwatch.start(self.updates, self.world.clock())
        try:
            while not self.stopwatch.enough():
                self.step()
                if self.stepper.read(wait=self.updates % FEWEST == 0) is not None:
                    self.stopwatch.mark(self.updates, self.world.clock())
                self.check_stop()
        finally:
            for array, values in zip(arrays, kept):
                put(array, values)
            self.load(step, counters)

    def evaluate(self):
        """Evaluate all splits."""
        losses = self.estimate_loss()
        bits = bits_per_byte(losses["val_loss"], self.corpus.validation)
        row = dict(step=self.updates, **losses, val_bpb=bits, time_s=round(self.elapsed, 3))
        self.evaluated = self.updates
        self.notify("on_evaluation", row, self.improved(losses["val_loss"]))

    def estimate_loss(self, n_batches=None):
        """{name: loss} of all splits in nats per token, over the same batches each time: `eval_iters`, or n_batches.

        Those of a large training split change until training has reached all of it (see `batches.reach`).
        The names are train_loss, val_loss and, with retention data, replay_loss.
        """
        arrays = self.tokens, self.targets
        n_batches = -(-(n_batches or self.config.eval_iters) * self.config.batch_size // self.deal.rows)
        between = self.check_stop if self.world.size == 1 else lambda: None  # ranks stop together, between updates
        return {
            name: mean_loss(self.model, batches, *arrays, n_batches, between, self.world)
            for name, batches in self.evaluated_batches.items()
        }

    def improved(self, val_loss):
        """Whether a validation loss is the lowest so far. Counts the evaluations since the lowest."""
        lower = val_loss < self.best
        self.best, self.stale = (val_loss, 0) if lower else (self.best, self.stale + 1)
        return lower

    def counters(self):
        """{name: number} that a checkpoint keeps besides the step: those of the last update and of evaluations."""
        return super().counters() | self.evaluation_counters()

    def evaluation_counters(self):
        """The counters that an evaluation changes."""
        best = None if math.isinf(self.best) else self.best
        return dict(best=best, stale=self.stale, evaluated=self.evaluated)

    def load(self, step, counters):
        """Continue from a checkpoint. Those of version 0.3 and before have no counters of evaluations."""
        super().load(step, counters)
        if "evaluated" in counters:
            self.best = math.inf if counters["best"] is None else counters["best"]
            self.stale, self.evaluated = counters["stale"], counters["evaluated"]

    def save(self):
        """A checkpoint to resume from."""
        self.notify("on_save")

    def notify(self, event, *arguments):
        """Call a method of all callbacks."""
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)

    def finished(self):
        if self.config.max_seconds:
            return self.out_of_patience() or self.elapsed >= self.config.max_seconds
        return self.out_of_patience() or self.max_iters is not None and self.updates >= self.max_iters

    def out_of_patience(self):
        return 0 < self.config.patience <= self.stale

    def log_is_due(self):
        return self.updates % self.config.log_interval == 0

    def is_due(self, interval):
        """Whether it is time for what happens every `interval` updates; 0 means a tenth of the run.

        Within a round it is not.
        """
        if self.rounds and self.updates % self.config.sync_every:
            return False
        if not interval and self.config.max_seconds:
            return self.updates == 0 or self.tenth_done
        if not interval and self.max_iters is None:
            return self.updates == 0
        return self.updates % interval_of(interval, self.max_iters) < (self.config.sync_every or 1)

    def evaluation_is_due(self):
        """Not twice at one step, nor before the first update, except that a finetuned run evaluates its base."""
        first = 0 if self.run.base else 1
        due = self.updates >= first and self.is_due(self.config.eval_interval)
        if self.everyone.rank and self.rounds:
            return False  # rank 0 does it for all
        return self.evaluated != self.updates and (due or self.finished())

    def request_stop(self, signal_number):
        """Stop after this step. The signal handler calls it."""
        self.stop_signal = signal_number
        self.notify("on_stop_request")

    def check_stop(self):
        """Raise Interrupted if a signal asked to stop, on any rank. With rounds, rank 0 stops at the end of one."""
        if self.rounds and (self.everyone.rank or self.updates % self.config.sync_every):
            return
        signal_number = self.world.max_over_ranks(self.stop_signal or 0)
        if signal_number:
            self.stop_signal = signal_number
            raise Interrupted(signal_number)
