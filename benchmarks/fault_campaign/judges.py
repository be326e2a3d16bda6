"""Verdicts: what must be true of a command that ended, and of a folder after a fault.

survived     all is as it was asked for: results equal those of an undisturbed command, or one sentence refuses
failed       a traceback, a wrong status, no sentence, a hang, memory, a process left over; nothing is lost
lost         work that was saved, or said to be, is gone, cannot be loaded or continued, or continues with other bits
undetected   a damage changed a result, and nothing said so
unavailable  could not be tried here; does not count as tried
"""

import hashlib
import math
import re
from pathlib import Path

import numpy as np

from fault_campaign import children
from fault_campaign.fixtures import RECIPE, STEPS

SURVIVED, FAILED, LOST, UNDETECTED, UNAVAILABLE = VERDICTS = "survived", "failed", "lost", "undetected", "unavailable"
MEMORY = 2 << 30  # bytes that no tiny command may need
SENTENCE = 700  # characters of a message at most
SAVE_INTERVAL = int(re.search(r"--save-interval (\d+)", RECIPE)[1])


class Fault(Exception):
    """A verdict other than survived. Its argument is what was seen."""

    def __init__(self, verdict, seen):
        super().__init__(seen)
        self.verdict = verdict


def require(condition, verdict, seen):
    """Raise `Fault` unless the condition holds."""
    if not condition:
        raise Fault(verdict, seen)


def check_end(result, what, statuses=(0, 2)):
    """The command ended by itself, in one of `statuses`, without a traceback; with status 2 in one sentence."""
    require(not result.hung and not result.late, FAILED, f"{what} hangs: {result.tail()}")
    require("Traceback (most recent call last)" not in result.err, FAILED, f"{what} traces back: {result.tail()}")
    require(result.status in statuses, FAILED, f"{what} ends with status {result.status}: {result.tail()}")
    require(not result.orphans, FAILED, f"{what} leaves processes behind")
    require(result.peak < MEMORY, FAILED, f"{what} takes {result.peak >> 20} MiB")
    if result.status == 2:
        sentence(result, what)


def sentence(result, what):
    """The one sentence with which a command refuses: the last line of stderr, and the only one of its kind."""
    lines = [line for line in result.err.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    usage = re.fullmatch(r"slm-np \w+: error: .+", last)
    require(last.startswith("slm_np: ") or usage, FAILED, f"{what} ends with status 2 and no sentence: {result.tail()}")
    require(len(last) <= SENTENCE, FAILED, f"{what} ends with a message of {len(last)} characters: {last[:200]}")
    said = last.partition(": ")[2]
    empty = re.search(r"<class|object at 0x|Errno|\(\)", said)
    require(not empty, FAILED, f"{what} says no sentence: {last}")
    return said


def done(result, what, verdict=FAILED):
    """The command succeeded. `verdict` if it did not."""
    check_end(result, what, (0, 2))
    require(result.status == 0, verdict, f"{what} is refused: {result.tail()}")


def digest(path):
    """{file: SHA-256} of a file or of all files in a folder."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def unlike(found, wanted):
    """What differs between two dicts of arrays, or ""."""
    if found.keys() != wanted.keys():
        return f"other tensors: {sorted(found.keys() ^ wanted.keys())}"
    return next(
        (name for name in wanted if found[name].tobytes() != np.asarray(wanted[name], found[name].dtype).tobytes()), ""
    )


# Files of a run that training does not change. The last three are for other programs.
KEPT = (
    *("tokenizer.json", "generation_config.json", "chat_template.json"),
    *("config.json", "tokenizer_config.json", "chat_template.jinja"),
)


def same_run(directory, reference, what, verdict=LOST, kept=KEPT, step=STEPS):
    """The run in `directory` ended with the bits of the run `reference`: last checkpoint, best model, `kept` files.

    step: that of the last checkpoint
    """
    from slm_np.errors import UserError
    from slm_np.formats import checkpoint

    directory, reference = Path(directory), Path(reference)
    try:
        if (reference / f"checkpoint-{step}").is_dir():
            ours, theirs = (checkpoint.load_checkpoint(run / f"checkpoint-{step}") for run in (directory, reference))
            for part in ("model", "optimizer"):
                name = unlike(getattr(ours, part), getattr(theirs, part))
                require(not name, verdict, f"{what}: the last checkpoint has other bits in {name}")
            # Counters that a reader must not lose; `elapsed` is a time.
            counters = {key for key in theirs.state if key != "elapsed"}
            differs = [key for key in counters if ours.state.get(key) != theirs.state[key]]
            require(not differs, verdict, f"{what}: the last checkpoint has other counters {differs}")
        (ours, said), (theirs, wanted) = (checkpoint.load_best(run) for run in (directory, reference))
        name = unlike(ours, theirs)
        require(not name, verdict, f"{what}: the best model has other bits in {name}")
        for key in ("step", "val_loss"):
            require(said.get(key) == wanted.get(key), verdict, f"{what}: the best model is of {key} {said.get(key)}")
    except UserError as error:
        raise Fault(verdict, f"{what}: {error}") from None
    for name in kept:
        if (reference / name).exists():
            require((directory / name).exists(), verdict, f"{what}: {name} is missing")
            same = (directory / name).read_bytes() == (reference / name).read_bytes()
            require(same, verdict, f"{what}: {name} differs")


def same_files(found, wanted, what, verdict=LOST):
    """Two folders, or two files, have the same contents, except for temporary files."""
    ours, theirs = digest(found), digest(wanted)
    require(ours == theirs, verdict, f"{what}: other files {sorted(set(ours.items()) ^ set(theirs.items()))[:3]}")


class Announced:
    """What a training command said on stderr before it ended: what must be on disk."""

    def __init__(self, text):
        steps = [int(step) for step in re.findall(r"^step (\d+)/", text, re.M)]
        # A line about step K is printed after the update K, and the checkpoint before that update is durable by then.
        self.checkpoint = (max(steps) - 1) // SAVE_INTERVAL * SAVE_INTERVAL if steps else None
        losses = re.findall(r"^step \d+: train loss [\d.]+, validation loss ([\d.]+)", text, re.M)
        self.best = min(map(float, losses), default=math.inf)

    def check(self, directory, what):
        """The checkpoint and the best model are there, and valid."""
        from slm_np.errors import UserError
        from slm_np.formats import checkpoint

        try:
            found = [
                checkpoint.load_checkpoint(path).step for path in Path(directory).glob("checkpoint-*") if valid(path)
            ]
            newest = max(found, default=-1)
            if self.checkpoint is not None:
                require(
                    newest >= self.checkpoint, LOST, f"{what}: checkpoint {self.checkpoint} is gone, {newest} is left"
                )
            if math.isfinite(self.best):
                _, metadata = checkpoint.load_best(directory)
                loss = float(metadata["val_loss"])
                require(loss <= self.best + 1e-4, LOST, f"{what}: the best model had {self.best}, this one {loss}")
        except UserError as error:
            raise Fault(LOST, f"{what}: {error}") from None


def valid(path):
    """Whether a checkpoint can be loaded."""
    from slm_np.errors import UserError
    from slm_np.formats import checkpoint

    try:
        checkpoint.load_checkpoint(path)
        return True
    except UserError:
        return False


def generates(directory, folder):
    """The `Result` of generating from a run."""
    return children.forked("generate", "--model", directory, "-n", 8, "--seed", 3, "--prompt", "the", cwd=folder)


def after_fault(scene, fixtures, folder, result, before):
    """Judge a folder after the command of a scene was killed or failed.

    before: {input: digest} of its inputs.   Raises `Fault` unless what was there is there, the output is loadable or
    refused, and the command, again or continued, ends with the bits of an undisturbed one.
    """
    folder, fixtures = Path(folder), Path(fixtures)
    output, reference = folder / scene.output, fixtures / scene.reference
    for name, was in before.items():
        require(digest(folder / name) == was, LOST, f"the fault changed {name}")
    announced = Announced(result.err) if scene.again else None
    what = "after the fault"
    if scene.kind == "run" and (output / "run.json").is_file():
        shown = generates(scene.output, folder)
        done(shown, f"generate {what}", LOST)
        if announced:
            announced.check(output, what)
            again = children.forked(scene.verb, *scene.again.split(), cwd=folder)
            done(again, f"{scene.again} {what}", LOST)
    else:
        require(not scene.existed, LOST, f"{what}: {scene.output} is no longer a run")
        if announced:
            nothing = announced.checkpoint is None and math.isinf(announced.best)
            require(nothing, LOST, f"{what}: {scene.output} is not a run, but a checkpoint was announced")
        if scene.kind == "run":
            shown = generates(scene.output, folder)
            check_end(shown, f"generate {what}", (2,))
        elif scene.kind == "tokens" and output.is_dir() and any(output.iterdir()):
            same_files(output, reference, f"{what}, under its final name")
        again = children.forked(scene.verb, *scene.words.split(), cwd=folder, stdin=scene.stdin)
        if scene.kind == "file" and output.is_file() and again.status == 2:  # /save does not overwrite
            require("already exists" in again.err, FAILED, f"again {what}: {again.tail()}")
        elif scene.kind == "tokens" and output.is_dir() and again.status == 2 and result.status == 0:
            pass  # it is complete
        else:
            done(again, f"the command again {what}")
    finished(scene, fixtures, folder)


def finished(scene, fixtures, folder):
    """What the command of a scene makes is complete, and as in the fixtures."""
    output, reference = Path(folder) / scene.output, Path(fixtures) / scene.reference
    require(output.exists(), LOST, f"{scene.output} was not made")
    if scene.kind == "run":
        same_run(output, reference, scene.output)
        same_model(output, reference)
    else:
        same_files(output, reference, scene.output)
    left = [path.name for path in Path(folder).rglob("*") if re.search(r"\.(tmp|old)-\d+$|\.part$", path.name)]
    require(not left, FAILED, f"files are left over: {left[:3]}")
    for path in Path(folder).rglob("*.lock"):
        require(is_free(path), FAILED, f"{path.name} is still locked")


def same_model(directory, reference):
    """run.json says of which model the weights are."""
    from slm_np.errors import UserError
    from slm_np.formats.run_config import read_config

    try:
        ours, theirs = read_config(directory), read_config(reference)
        require(ours.model == theirs.model, LOST, f"{directory} has a run.json of another model")
    except UserError as error:
        raise Fault(LOST, str(error)) from None


def is_free(path):
    """Whether no process holds the lock of a file."""
    import fcntl

    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            return False
