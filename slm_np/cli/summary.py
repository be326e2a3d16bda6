"""What `info` prints: details of one run, or a table of several."""

from dataclasses import dataclass
from pathlib import Path

from slm_np.cli.chart import chart, sparkline, table
from slm_np.cli.exports import exports
from slm_np.config import ATTENTION
from slm_np.errors import UserError
from slm_np.progress import duration
from slm_np.words import counted

CHART_HEIGHT = 9  # lines


@dataclass(frozen=True)
class Summary:
    """A run as far as its files describe it, without its weights.

    rows  its metrics
    step  updates so far
    best  the row of the evaluation with the lowest validation loss, {} before the first
    """

    path: Path
    config: object
    parameters: int
    tokenizer: str
    rows: list
    step: int
    best: dict

    @property
    def evaluations(self):
        """The rows that have a validation loss."""
        return [row for row in self.rows if row.get("val_loss") is not None]

    @property
    def seconds(self):
        """Training time."""
        return max((row["time_s"] for row in self.rows if row.get("time_s")), default=0.0)

    @property
    def tokens(self):
        """Tokens read in training; a token that is read again counts again."""
        train = self.config.train
        return self.step * train.batch_size * train.grad_accumulation_steps * self.config.model.block_size

    def unit(self):
        """(unit of losses, its factor from nats per token): bits/byte, or nats/token if bytes are unknown."""
        loss, bits = self.best.get("val_loss"), self.best.get("val_bpb")
        return ("bits/byte", bits / loss) if loss and bits else ("nats/token", 1.0)


def summary(path):
    """The `Summary` of the run in the folder `path`. Raises UserError if it is none."""
    from slm_np.formats import metrics, run_config, runs
    from slm_np.nn.model import parameter_count

    path = Path(path)
    config, rows = run_config.read_config(path), list(filter(_is_sound, metrics.read_metrics(path)))
    steps = [row["step"] for row in rows]
    checkpoints = [folder.name.partition("-")[2] for folder in path.glob("checkpoint-*")]
    steps += [int(number) for number in checkpoints if number.isdecimal()]
    file = runs.intact_file(path, config, "tokenizer.json")
    return Summary(
        path,
        config,
        parameter_count(config.model),
        describe_tokenizer(file) if file else "none: the run is on token files, or its tokenizer.json is lost",
        rows,
        step=max(steps, default=0),
        best=min((row for row in rows if row.get("val_loss") is not None), key=lambda row: row["val_loss"], default={}),
    )


def _is_sound(row):
    """Whether a row of metrics has a step, and numbers or null in the columns that are shown."""
    shown = (row.get(name) for name in ("loss", "val_loss", "val_bpb", "train_loss", "replay_loss", "time_s"))
    return type(row.get("step")) is int and all(value is None or type(value) in (int, float) for value in shown)


def describe_model(model):
    """The architecture of a ModelConfig in words."""
    mixers = {
        "A": "attention",
        "L": f"attention to the newest {counted(model.window, 'token')}",
        "N": "attention without rotary positions",
        "M": f"Mamba with {counted(model.n_inner, 'channel')} of {counted(model.ssm_state_size, 'state')}",
        "S": f"linear recurrence of {counted(model.recurrence_size, 'state')}",
    }
    letters = dict.fromkeys(model.letters)
    first = next((letter for letter in letters if letter in ATTENTION), None)
    if first:  # the heads are the same in all layers
        mixers[first] = f"{mixers[first]}, {describe_heads(model)}" if first != "A" else describe_heads(model)
    pattern = f"{model.pattern}: " * (len(letters) > 1) + "; ".join(mixers[letter] for letter in letters)
    parts = [f"{counted(model.n_layer, 'layer')} ({pattern})", f"width {model.n_embd}"]
    parts += [f"hidden {model.n_hidden}"] * (model.feed_forward != "none")
    parts += [
        f"context {model.block_size}",
        describe_positions(model),
        f"norm {model.norm}" if model.norm != "none" else "no norm",
        model.feed_forward if model.feed_forward != "none" else "no feed-forward",
    ]
    parts += (
        ["parallel blocks"] * model.parallel
        + ["no residual"] * (not model.residual)
        + [f"{model.head} head" if model.head != "none" else "no head"]
    )
    return ", ".join(parts)


def describe_heads(model):
    """The heads of a ModelConfig in words, without the settings that have their default."""
    heads = f"{counted(model.n_head, 'head')} of {model.head_dim}"
    if model.n_kv_head != model.n_head:
        heads += f", {model.n_kv_head} for keys and values"
    if model.has_qkv_bias != model.bias:
        heads += f", {'with' if model.has_qkv_bias else 'without'} biases of queries, keys and values"
    if model.score_scale:
        heads += f", scores scaled by {model.score_scale:g}"
    return heads + ", normed queries and keys" * model.qk_norm


def describe_positions(model):
    """The positional encoding of a ModelConfig in words."""
    found = f"{model.positions if model.positions != 'none' else 'no'} positions"
    if model.rotary_dim and model.has_rotation:
        found += f" in {model.rotary_dim} of {model.head_dim} columns"
    return found + f" with frequencies scaled by {model.rope_scaling}" * bool(model.has_rotation and model.rope_scaling)


def describe_tokenizer(path):
    """The contents of a tokenizer.json in words. Raises UserError if it is none."""
    from slm_np.formats.files import read_json

    try:
        return tokenizer_in_words(read_json(path))
    except LookupError:
        raise UserError(
            f"{path} is not a tokenizer.json: it has no model with a vocabulary; name another file"
        ) from None
    except (TypeError, AttributeError):
        raise UserError(f"{path} is damaged: its fields have other types; copy it again from its source") from None


def tokenizer_in_words(fields):
    """The fields of a tokenizer.json in words. LookupError if they are none, TypeError if they are damaged."""
    model = fields.get("model")
    if not isinstance(model, dict) or not hasattr(model.get("vocab"), "__len__"):
        raise LookupError("no vocabulary")
    vocab, merges = model["vocab"], model.get("merges") or []
    known = set(vocab if isinstance(vocab, dict) else ())
    added = {token.get("content") for token in fields.get("added_tokens") or []} - known
    kind = {"WordLevel": "characters"}.get(model.get("type"), model.get("type") or "unknown")
    n_merges = len(merges)
    if kind == "BPE":
        kind = f"byte pairs, {counted(n_merges, 'merge')}" if merges else "bytes"
    return f"{kind}, {counted(len(vocab) + len(added), 'token')}"


def describe_run(run, width, ascii):
    """The lines about one `Summary`, for a terminal of `width` columns."""
    lines = [f"{run.path}: a run of slm_np, {_origin(run.config)}"]
    lines.append(f"  model      {counted(run.parameters, 'parameter')}: {describe_model(run.config.model)}")
    lines.append(f"  tokenizer  {run.tokenizer}")
    lines += exports(run.config.model, _tokenizer_type(run))
    if data := _data(run.config.data, run.config.train.val_data):
        lines.append(f"  data       {data}")
    if run.step or run.rows:
        lines.append(f"  trained    {_training(run)}")
        lines.append(f"  loss       {_losses(run.best) if run.best else 'not evaluated yet'}")
    lines.append(f"  files      {', '.join(f'{name} {size / 2**20:,.1f} MiB' for name, size in _sizes(run.path))}")
    return lines + _curves(run, width, ascii)


def _tokenizer_type(run):
    """The type of the model in a run's tokenizer.json, None without a tokenizer."""
    from slm_np.formats import runs
    from slm_np.formats.files import read_json

    file = runs.intact_file(run.path, run.config, "tokenizer.json")
    return file and read_json(file)["model"].get("type")


def _origin(config):
    converted = config.data.get("converted")
    if converted:
        origin = f"converted from {converted}"
    else:
        origin = f"preset {config.preset}" if config.preset else "own settings"
    if config.base:
        kind = f"adapters of rank {config.lora['lora_rank']} for" if config.lora else "finetuned from"
        origin += f", {kind} step {config.base.get('step')} of {config.base.get('run')}"
    return origin


def _data(data, val_data):
    counts = data.get("tokens") or []
    tokens = f": {counts[0]:,} training and {counted(counts[1], 'validation token')}" if len(counts) == 2 else ""
    validation = f", validated on {val_data}" if val_data else ""
    return f"{data['source']}{tokens}{validation}" if data.get("source") else ""


def _training(run):
    train = run.config.train
    batch = f"{train.batch_size} x {run.config.model.block_size}"
    if train.grad_accumulation_steps > 1:
        batch += f" x {train.grad_accumulation_steps}"
    time = f", in {duration(run.seconds)}" if run.seconds else ""
    fitted = f" (of {run.config.fitted_iters:,}, fitted to {train.fit_time})" if run.config.fitted_iters else ""
    return (
        f"{counted(run.step, 'update')}{fitted} of {batch} tokens, {run.tokens:,} in all{time}; "
        f"{train.lr_schedule} rate {train.learning_rate:g} to {train.min_lr:g}, weight decay {train.weight_decay:g}"
    )


def _losses(best):
    bits, train, retention = best.get("val_bpb"), best.get("train_loss"), best.get("replay_loss")
    return (
        f"validation {best['val_loss']:.4f} nats/token"
        + (f", {bits:.4f} bits/byte" if bits else "")
        + f" at step {best['step']:,}, the best"
        + (f"; training {train:.4f}" if train is not None else "")
        + (f", retention {retention:.4f}" if retention is not None else "")
    )


def _sizes(folder):
    """[(name, bytes)] of the large files and the folders in a run's folder."""
    entries = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_dir() or entry.suffix in (".safetensors", ".json", ".bin") and entry.stat().st_size >= 1 << 16
    ]
    return [
        (entry.name, sum(file.stat().st_size for file in (entry, *entry.rglob("*")) if file.is_file()))
        for entry in entries
    ]


def _curves(run, width, ascii):
    unit, factor = run.unit()
    curve = [(row["step"], row["loss"] * factor) for row in run.rows if row.get("loss") is not None]
    marks = [(row["step"], row["val_loss"] * factor) for row in run.evaluations]
    drawn = chart(curve, marks, max(20, min(100, width - 10)), CHART_HEIGHT, ascii)
    if not drawn:
        return []
    return ["", f"  {unit} over updates: the line is training, {'o' if ascii else '●'} validation", *drawn]


HEADING = "run,preset,parameters,vocabulary,context,updates,time,nats/token,bits/byte,bits/byte over time".split(",")


def compare(runs, ascii):
    """The lines of a table of several `Summary`, the lowest bits per byte marked."""
    bits = [run.best.get("val_bpb") for run in runs]
    best = min((value for value in bits if value), default=None)
    curves = [[row["val_bpb"] for row in run.evaluations if row.get("val_bpb")] for run in runs]
    scale = [value for curve in curves for value in curve]
    rows = [HEADING]
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
            "Each loss is that of the run's own validation text. To compare them on one text: "
            "python -m slm_np.evaluate --model RUN --data TEXT"
        )
    return lines
