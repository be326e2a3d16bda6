"""What a run is and how it was trained, one or several side by side: `python -m slm_np.info RUN [RUN ...]`."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from slm_np.cli import flags
from slm_np.cli.chart import chart, plain, sparkline, table
from slm_np.errors import UserError, exit_with_sentence
from slm_np.progress import duration

HEIGHT = 9  # of a chart, in lines


@dataclass(frozen=True)
class Summary:
    """A run as far as its files tell, without its weights. `rows`: of its metrics; `step`: updates so far; `best`: the evaluation with the
    lowest validation loss, {} before the first."""

    path: Path
    config: object
    parameters: int
    tokenizer: str
    rows: list
    step: int
    best: dict

    @property
    def evaluations(self):
        return [row for row in self.rows if row.get("val_loss") is not None]

    @property
    def seconds(self):
        return max((row["time_s"] for row in self.rows if row.get("time_s")), default=0.0)

    @property
    def tokens(self):
        """Tokens read in training, those read again included."""
        train = self.config.train
        return self.step * train.batch_size * train.grad_accumulation_steps * self.config.model.block_size

    def scale(self, key="val_bpb"):
        """("bits/byte", factor from nats per token), or ("nats/token", 1) where bytes are not known."""
        return (
            ("bits/byte", self.best[key] / self.best["val_loss"])
            if self.best.get(key) and self.best.get("val_loss")
            else ("nats/token", 1.0)
        )


def summary(path):
    """The `Summary` of the run in the folder `path`. UserError if it is none."""
    from slm_np.formats import metrics, run_config
    from slm_np.nn.model import parameter_count

    path = Path(path)
    config, rows = run_config.read_config(path), metrics.read_metrics(path)
    steps = [row["step"] for row in rows if isinstance(row.get("step"), int)]
    steps += [
        int(number) for place in path.glob("checkpoint-*") if (number := place.name.partition("-")[2]).isdecimal()
    ]
    best = min((row for row in rows if row.get("val_loss") is not None), key=lambda row: row["val_loss"], default={})
    file = path / "tokenizer.json"
    return Summary(
        path,
        config,
        parameter_count(config.model),
        tokenizer_line(file) if file.exists() else "none (token files)",
        rows,
        max(steps, default=0),
        best,
    )


def model_line(model):
    """The architecture in words."""
    heads = f"{model.n_head} heads of {model.head_dim}" + f", {model.n_kv_head} for keys and values" * (
        model.n_kv_head != model.n_head
    )
    mixers = {
        "A": heads,
        "M": f"Mamba of {model.n_inner} channels with {model.ssm_state_size} states",
        "S": f"linear recurrence of {model.recurrence_size} states",
    }
    found = dict.fromkeys(model.letters)
    pattern = f"{model.pattern}: " * (len(found) > 1) + "; ".join(mixers[letter] for letter in found)
    parts = [f"{model.n_layer} layer{'s' * (model.n_layer != 1)} ({pattern})", f"width {model.n_embd}"]
    parts += [f"hidden {model.n_hidden}"] * (model.feed_forward != "none")
    parts += [
        f"context {model.block_size}",
        f"{model.positions} positions",
        f"norm {model.norm}",
        model.feed_forward if model.feed_forward != "none" else "no feed-forward",
    ]
    parts += ["no residual"] * (not model.residual) + [f"{model.head} head" if model.head != "none" else "no head"]
    return ", ".join(parts)


def tokenizer_line(path):
    """What a tokenizer.json holds, in words. UserError if it is none."""
    from slm_np.formats.files import read_json

    fields = read_json(path)
    model = fields.get("model")
    if not isinstance(model, dict) or not hasattr(model.get("vocab"), "__len__"):
        raise UserError(f"{path} is no tokenizer.json, it has no model with a vocabulary; name another file")
    vocab, merges = model["vocab"], model.get("merges") or []
    extra = {token.get("content") for token in fields.get("added_tokens") or []} - set(
        vocab if isinstance(vocab, dict) else ()
    )
    kind = {"WordLevel": "characters"}.get(model.get("type"), model.get("type") or "unknown")
    if kind == "BPE":
        kind = f"byte pairs, {len(merges):,} merges" if merges else "bytes"
    return f"{kind}, {len(vocab) + len(extra):,} pieces"


def describe(run, width, ascii):
    """The lines about one run."""
    model, train, data = run.config.model, run.config.train, run.config.data
    made = (
        f"converted from {data['converted']}"
        if data.get("converted")
        else f"preset {run.config.preset}"
        if run.config.preset
        else "own settings"
    )
    base = run.config.base
    lines = [
        f"{run.path}: a run of slm_np, {made}"
        + (f", finetuned from step {base.get('step')} of {base.get('run')}" if base else ""),
        f"  model      {run.parameters:,} parameters: {model_line(model)}",
        f"  tokenizer  {run.tokenizer}",
    ]
    if data.get("source"):
        counts = data.get("tokens") or []
        lines.append(
            f"  data       {data['source']}"
            + (f": {counts[0]:,} training and {counts[1]:,} validation tokens" if len(counts) == 2 else "")
        )
    if run.step or run.rows:
        batch = f"{train.batch_size} x {model.block_size}" + f" x {train.grad_accumulation_steps}" * (
            train.grad_accumulation_steps > 1
        )
        lines.append(
            f"  trained    {run.step:,} updates of {batch} tokens, {run.tokens:,} in all"
            + (f", in {duration(run.seconds)}" if run.seconds else "")
            + f"; {train.lr_schedule} rate {train.learning_rate:g} to {train.min_lr:g}, weight decay {train.weight_decay:g}"
        )
    if run.best:
        bits = f", {run.best['val_bpb']:.4f} bits/byte" if run.best.get("val_bpb") else ""
        replay = f", replay {run.best['replay_loss']:.4f}" if run.best.get("replay_loss") is not None else ""
        lines.append(
            f"  loss       validation {run.best['val_loss']:.4f} nats/token{bits} at step {run.best['step']:,}, the best"
            + (f"; training {run.best['train_loss']:.4f}" if run.best.get("train_loss") is not None else "")
            + replay
        )
    lines.append(f"  files      {', '.join(f'{name} {size / 2**20:,.1f} MiB' for name, size in sizes(run.path))}")
    unit, factor = run.scale()
    curve = [(row["step"], row["loss"] * factor) for row in run.rows if row.get("loss") is not None]
    marks = [(row["step"], row["val_loss"] * factor) for row in run.evaluations]
    drawn = chart(curve, marks, max(20, min(100, width - 10)), HEIGHT, ascii)
    if drawn:
        lines += ["", f"  {unit} over updates: the line training, {'o' if ascii else '●'} validation", *drawn]
    return lines


def sizes(path):
    """[(name, bytes)] of what lies in a folder, folders as a whole."""
    return [
        (
            entry.name,
            sum(file.stat().st_size for file in ([entry] if entry.is_file() else entry.rglob("*")) if file.is_file()),
        )
        for entry in sorted(path.iterdir())
        if entry.suffix in (".safetensors", ".json", ".bin") and entry.stat().st_size >= 1 << 16 or entry.is_dir()
    ]


def compare(runs, width, ascii):
    """The lines of a table of several runs, the best by bits per byte marked."""
    bits = [run.best.get("val_bpb") for run in runs]
    best = min((value for value in bits if value), default=None)
    curves = [[row["val_bpb"] for row in run.evaluations if row.get("val_bpb")] for run in runs]
    scale = [value for curve in curves for value in curve]
    rows = [
        [
            "run",
            "preset",
            "parameters",
            "vocabulary",
            "context",
            "updates",
            "time",
            "nats/token",
            "bits/byte",
            "bits/byte over time",
        ]
    ]
    for run, value, curve in zip(runs, bits, curves):
        model = run.config.model
        rows.append(
            [
                str(run.path),
                run.config.preset or "-",
                f"{run.parameters:,}",
                f"{model.vocab_size:,}",
                f"{model.block_size:,}",
                f"{run.step:,}",
                duration(run.seconds) if run.seconds else "-",
                f"{run.best['val_loss']:.4f}" if run.best else "-",
                f"{value:.4f}{'*' if value == best else ' '}" if value else "- ",
                sparkline(curve, 16, ascii, min(scale, default=None), max(scale, default=None)),
            ]
        )
    lines = table(rows, left=2)
    texts = {(run.config.train.val_data or run.config.data.get("source"), run.config.train.limit_bytes) for run in runs}
    if len(texts) > 1:
        lines.append(
            "The losses are of each run's own validation text; on one text, python -m slm_np.evaluate --model RUN --data TEXT compares them."
        )
    return lines


# What is no run


def other(path):
    """The lines about a file or folder that is no run: prepared tokens, a tokenizer, another program's checkpoint, a text."""
    if path.is_dir():
        return token_folder(path)
    if path.suffix == ".json":
        return [f"{path}: a tokenizer, {tokenizer_line(path)}"]
    if path.suffix == ".bin":
        return token_file(path)
    return text_file(path)


def token_folder(path):
    """The lines about a folder of prepared tokens. UserError if it is none."""
    from slm_np.formats.files import read_json
    from slm_np.formats.run_config import read_config

    if not (path / "meta.json").is_file():
        read_config(path)  # which says what is wrong with it
    meta = read_json(path / "meta.json")
    lines = [
        f"{path}: prepared tokens, {meta.get('dtype', 'uint16')}"
        + (f", vocabulary {meta['vocab_size']:,}" if isinstance(meta.get("vocab_size"), int) else "")
    ]
    for file in sorted(path.glob("*.bin")):
        if file.name.endswith(".mask.bin"):
            continue
        told = {
            name: meta[name].get(file.stem)
            for name in ("tokens", "bytes", "documents")
            if isinstance(meta.get(name), dict)
        }
        if told.get("tokens") is None:
            told["tokens"] = file.stat().st_size // (4 if meta.get("dtype") == "uint32" else 2)
        lines.append(
            f"  {file.stem:<11}"
            + ", ".join(f"{value:,} {name}" for name, value in told.items() if isinstance(value, int))
        )
    if (path / "tokenizer.json").is_file():
        lines.append(f"  tokenizer  {tokenizer_line(path / 'tokenizer.json')}")
    return lines


def token_file(path):
    """The lines about a .bin: a checkpoint of llama2.c, or tokens."""
    from slm_np.formats import llama2c
    from slm_np.nn.model import parameters
    from slm_np.nn.parameters import count

    try:
        config, _ = llama2c.read_checkpoint(path)
    except UserError:
        size = path.stat().st_size
        return [f"{path}: a file of {size // 2:,} tokens, if they are of two bytes as nanoGPT's"]
    return [
        f"{path}: a checkpoint of llama2.c, which python -m slm_np.convert makes a run of",
        f"  model      {count(parameters(config)):,} parameters: {model_line(config)}",
    ]


def text_file(path):
    """The lines about a text, read a block at a time."""
    from slm_np.data import corpus, documents

    text = corpus.find(str(path), "train", None)
    n_lines = n_documents = 0
    for block in text.blocks():
        n_lines += block.count(b"\n")
    kind = documents.ROWS if path.suffix.lower() == ".jsonl" else "marker"
    if kind == documents.ROWS:
        return [f"{path}: {text.size:,} bytes, {n_lines:,} rows of JSON"]
    n_documents = sum(piece is documents.END for piece in documents.split(text.blocks(), kind))
    return [
        f"{path}: a text of {text.size:,} bytes, {n_lines:,} lines, {n_documents:,} document{'s' * (n_documents != 1)}"
    ]


def parser(prog="slm-np info"):
    p = flags.Parser(
        prog=prog,
        description="What a run is, its sizes, how it was trained and its losses; several runs are compared in a table. "
        "Also tells about prepared tokens, a tokenizer.json and a text.",
    )
    p.add_argument("paths", nargs="*", metavar="RUN", help="directories of runs (default: the newest in runs/)")
    return p


@exit_with_sentence
def main(argv=None):
    """The command."""
    from slm_np.formats.runs import newest_run

    paths = [Path(path) for path in parser().parse(argv).paths] or [newest_run()]
    width, ascii = shutil.get_terminal_size((100, 24)).columns, plain()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; name the directory of a run, or a file")
    runs = [summary(path) for path in paths if (path / "config.json").is_file()]
    parts = [other(path) for path in paths if not (path / "config.json").is_file()]
    parts += [compare(runs, width, ascii)] if len(runs) > 1 else [describe(run, width, ascii) for run in runs]
    print("\n\n".join("\n".join(lines) for lines in parts))


if __name__ == "__main__":
    main()
