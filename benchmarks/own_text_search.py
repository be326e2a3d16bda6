"""How near the settings that `train --data TEXT` chooses are to the best that a small search finds in the same time.

    python benchmarks/own_text_search.py --data TEXT [--limit-bytes N] [--time 60s] [--seeds 1,2] [--json FILE]

Every run is `python -m slm_np.train --data TEXT --fit-time TIME` with changes to one or two settings of what it
chooses: smaller and larger models, other tokenizers, batches, rates and dropout. The loss of each run's best model is
that of `python -m slm_np.evaluate` on the held-out tenth, in bits per byte. Prints a line for each setting, best first,
with its ratio to what was chosen. A rerun with --json makes the runs that are missing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import checkout
from measure import write_json

from slm_np.config import duration_seconds
from slm_np.errors import UserError, command
from slm_np.formats import run_config

CHOSEN = "chosen"
# Changes as functions of the chosen (ModelConfig, TrainConfig). Those that change nothing are left out.
SEARCH = {
    "two thirds of the width": lambda model, train: sized(model, 2 / 3),
    "one and a half times the width": lambda model, train: sized(model, 3 / 2),
    "half as many layers": lambda model, train: dict(n_layer=max(1, model.n_layer // 2)),
    "twice as many layers": lambda model, train: dict(n_layer=2 * model.n_layer),
    "bytes": lambda model, train: dict(tokenizer="byte"),
    "half the vocabulary": lambda model, train: vocabulary(train, 1 / 2),
    "twice the vocabulary": lambda model, train: vocabulary(train, 2),
    "half the rate": lambda model, train: dict(learning_rate=train.learning_rate / 2),
    "twice the rate": lambda model, train: dict(learning_rate=train.learning_rate * 2),
    "half the batch": lambda model, train: dict(batch_size=max(1, train.batch_size // 2)),
    "twice the batch": lambda model, train: dict(batch_size=2 * train.batch_size),
    "half the context": lambda model, train: dict(block_size=max(8, model.block_size // 2)),
    "other initial weights": lambda model, train: dict(init="normal" if model.init == "mimetic" else "mimetic"),
    "no dropout": lambda model, train: dict(dropout=0.0),
    "dropout 0.1": lambda model, train: dict(dropout=0.1),
    "dropout 0.3": lambda model, train: dict(dropout=0.3),
}


def sized(model, factor):
    """A width of whole heads near `factor` times the model's."""
    heads = max(1, round(model.n_head * factor))
    return dict(n_head=heads, n_embd=heads * model.head_dim, n_hidden=32 * round(heads * model.head_dim / 12))


def vocabulary(train, factor):
    """Byte pairs: `factor` times as many; from bytes, 512."""
    kind, _, size = train.tokenizer.partition(":")
    return dict(tokenizer=f"bpe:{int(int(size) * factor)}" if kind == "bpe" else "bpe:512" if factor > 1 else "byte")


def changed(model, train):
    """{name: {field: value}} of the search around a chosen model and recipe, the chosen one first."""
    found = {CHOSEN: {}}
    for name, change in SEARCH.items():
        fields = change(model, train)
        own = {field: getattr(train if hasattr(train, field) else model, field) for field in fields}
        if fields != own and fields not in found.values():
            found[name] = fields
    return found


def flags(fields):
    """Words of a command line."""
    return [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def run(words):
    """The standard output of a command of slm_np. UserError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=checkout.ROOT,
    )
    if done.returncode:
        raise UserError(f"{' '.join(words)} ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def trained(args, fields, seed, folder):
    """(bits per byte, RunConfig) of one run."""
    directory = Path(folder) / f"run-{len(list(Path(folder).iterdir()))}"
    data = ["--data", str(Path(args.data).resolve()), "--limit-bytes", str(args.limit_bytes)]
    length = ["--fit-time", args.time, "--seed", seed, "--out-dir", str(directory)]
    run(["slm_np.train", *data, *length, *flags(fields)])
    found = json.loads(run(["slm_np.evaluate", "--model", str(directory), "--json"]))
    return found["bits_per_byte"], run_config.read_config(directory)


@command
def main(argv=None):
    parser = argparse.ArgumentParser(description="How near the settings chosen for a text are to the best ones.")
    parser.add_argument("--data", required=True, metavar="TEXT", help="file of text")
    parser.add_argument("--limit-bytes", type=int, default=0, help="use this much of it (default: all)")
    parser.add_argument("--time", default="60s", help="--fit-time of each run (default: %(default)s)")
    parser.add_argument("--seeds", default="1", help="separated by commas (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="keep the results in FILE")
    args = parser.parse_args(argv)
    duration_seconds("time", args.time)
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {args.seeds!r} is not a list of whole numbers; write 1,2,3") from None
    asked = dict(data=str(Path(args.data).resolve()), limit_bytes=args.limit_bytes, time=args.time)
    path = Path(args.json) if args.json else None
    kept = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else dict(asked=asked, rows={})
    if kept["asked"] != asked:
        raise UserError(f"--json {path} has runs of {kept['asked']}, not of {asked}; choose another file")
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(str, seeds):
            search(args, seed, folder, kept["rows"], lambda: path and write_json(path, kept))
    print("\n".join(table(kept["rows"])))


def search(args, seed, folder, rows, keep):
    """Add the losses of a seed to `rows`, {name: dict(changes, losses {seed: bits per byte})}.

    The first run decides which changes there are. keep: function without arguments that writes the rows
    """

    def measured(name):
        """The RunConfig of a setting's run. None if its loss was known."""
        row = rows[name]
        if seed in row["losses"]:
            return None
        row["losses"][seed], config = trained(args, row["changes"], seed, folder)
        print(f"seed {seed}, {name} {row['changes'] or ''}: {row['losses'][seed]:.4f} bits/byte", flush=True)
        return config

    rows.setdefault(CHOSEN, dict(changes={}, losses={}))
    if config := measured(CHOSEN):
        model, train = config.model, config.train
        settings = {field: getattr(model, field) for field in ("n_layer", "n_embd", "block_size", "dropout", "init")}
        rows[CHOSEN]["settings"] = settings | dict(tokenizer=train.tokenizer, batch_size=train.batch_size)
        for name, changes in changed(model, train).items():
            rows.setdefault(name, dict(changes=changes, losses={}))
        keep()
    for name in rows:
        if measured(name):
            keep()


def table(rows):
    """Lines of Markdown, best first."""
    mean = {name: statistics.mean(row["losses"].values()) for name, row in rows.items()}
    yield f"chosen: {rows[CHOSEN]['settings']}"
    yield "| setting | bits/byte | of what was chosen |"
    yield "|---|---|---|"
    for name in sorted(mean, key=mean.get):
        yield f"| {name} | {mean[name]:.4f} | {mean[name] / mean[CHOSEN]:.3f} |"


if __name__ == "__main__":
    main()
