"""Settings: frozen dataclasses, one line per field. The commands' flags and `--config` files are made from them."""

import dataclasses
import math
import os
import re
from dataclasses import dataclass

from slm_np import arguments
from slm_np.errors import UserError, near
from slm_np.paths import expanded_list

DEVICES = ("cpu", "cuda")
DTYPES = ("auto", "fp32", "bf16", "fp16")
FILE_DTYPES = ("f32", "f16", "bf16", "q8_0")  # types of the weights in files for other programs
KERNEL_SETS = ("auto", "numba", "numpy")
# The mixers by their letters in --pattern: name, and the settings that only they read.
MIXERS = {
    "A": ("attention", ()),
    "L": ("local attention", ("window",)),
    "N": ("attention without rotary positions", ()),
    "M": ("Mamba", ("n_inner", "ssm_state_size", "time_step_rank", "conv_kernel")),
    "S": ("linear recurrence", ("recurrence_size",)),
}
ATTENTION, ROTATED = "ALN", "AL"  # letters of the mixers that attend to other tokens, and of those that may rotate
# Settings that only attention reads, and that only rotary positions read.
HEADS = ("n_head", "n_kv_head", "head_dim", "qkv_bias", "qk_norm", "score_scale")
ROTARY = ("rope_theta", "rope_scaling", "rotary_dim")
MIXER_LETTERS = ", ".join(f"{letter} ({name})" for letter, (name, _) in MIXERS.items())
DOCUMENTS = ("marker", "blank-line", "line")  # what may separate documents
SAMPLERS = ("penalty", "top-k", "top-p", "min-p", "temp")
# Values of settings that switch something off.
DISABLED = dict(lr_decay_iters=0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0, repeat_last_n=0)
MIN_SHARE = 0.1  # min_lr as a share of learning_rate, unless it is given
# The fields of TrainConfig that set the length of training; a run has one of them.
LENGTHS = ("max_iters", "epochs", "max_time", "fit_time")


def setting(default, help, *, low=None, high=None, choices=None, above=None, many=False, path=False):
    """A field with its description and the values it may take: `low <= value <= high`, `value > above`, or `choices`.

    many: flags, files and lists may give several values, which are joined by commas.
    path: names files: the value may be a path, and ~ in it stands for the home folder.
    """
    metadata = dict(help=help, low=low, high=high, choices=choices, above=above, many=many, path=path)
    return dataclasses.field(default=default, metadata=metadata)


def flag(name):
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def as_flag(name, value):
    """A field and its value as on a command line."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {value}"


def typed(field, value):
    """The value of a field in the field's own type, also from a NumPy scalar, a path or a list of paths.

    Raises UserError for another type.
    """
    name, rule, kind = flag(field.name), field.metadata, type(field.default)
    if rule["many"] and isinstance(value, (list, tuple)):
        value = arguments.paths(name, value)
    if rule["path"] and isinstance(value, (str, os.PathLike)):
        return expanded_list(os.fsdecode(value))
    value = arguments.plain(value)
    if type(value) is int and value.bit_length() > 1000:  # more than float() can convert and str() may print
        raise UserError(f"{name} is an integer of {value.bit_length()} bits; it must be below 1e300 in magnitude")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{name} must be of type {kind.__name__}, not {arguments.shown(value)}")
    return value


def check(settings):
    """Raise UserError if a field of the dataclass `settings` has a wrong type or a value that `setting` forbids.

    A field of another type that means the same gets its own type; see `typed`.
    """
    for field in dataclasses.fields(settings):
        name, rule = flag(field.name), field.metadata
        value = typed(field, getattr(settings, field.name))
        object.__setattr__(settings, field.name, value)
        if rule["choices"] and value not in rule["choices"]:
            raise UserError(f"{name} {value!r} is unknown; {near(value, rule['choices'])}")
        check_range(field, value)


def check_range(field, value):
    """Raise UserError if a number is not finite, or beyond the limits of its field. `value` has the field's type."""
    name, rule = flag(field.name), field.metadata
    if type(field.default) not in (int, float):
        return
    if not math.isfinite(value):
        raise UserError(f"{name} is {value}; it must be a finite number")
    if rule["low"] is not None and value < rule["low"]:
        raise UserError(f"{name} is {value}; it must be at least {rule['low']}")
    if rule["above"] is not None and value <= rule["above"]:
        raise UserError(f"{name} is {value}; it must be greater than {rule['above']}")
    if rule["high"] is not None and value > rule["high"]:
        raise UserError(f"{name} is {value}; it must be at most {rule['high']}")


def check_effect(settings, given):
    """Raise UserError if one of the settings {field: value} that a user gave has no effect in the dataclass `settings`.

    A value that disables what is disabled anyway may be given.
    """
    for field, reason in settings.unused.items():
        if field in given and given[field] != DISABLED.get(field):
            raise UserError(f"{as_flag(field, given[field])} has no effect {reason}; leave it out")


def lengths(values):
    """The names in LENGTHS that the settings {field: value} give a value. No updates are a length, too."""
    return [name for name in LENGTHS if name in values and (values[name] or name == "max_iters")]


def check_lengths(values):
    """Raise UserError if the settings {field: value} have more than one length of training."""
    given = [f"{flag(name)} {values[name]}" for name in lengths(values)]
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)} {'all' if len(given) > 2 else 'both'} set the length of training; give one"
        )


NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
DURATION = re.compile(f"(?:{NUMBER}h)?(?:{NUMBER}m)?(?:{NUMBER}s)?")


def check_documents(documents):
    """Raise UserError unless `documents` is a value of --documents."""
    if documents not in DOCUMENTS and not (documents.startswith("csv:") and documents[4:]):
        raise UserError(f"--documents {documents!r} is unknown; {near(documents, (*DOCUMENTS, 'csv:COLUMN'))}")


def duration_seconds(name, duration):
    """The duration of the field `name` in seconds; 0.0 for "".

    Raises UserError if it is not a positive duration such as 90s, 1.5h or 2h30m.
    """
    if not duration:
        return 0.0
    parts = DURATION.fullmatch(duration)
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1))) if parts else 0.0
    if not 0 < seconds < 1e9:
        raise UserError(f"{flag(name)} {duration!r} is not a duration; write 90s, 20m, 1.5h or 2h30m")
    return seconds


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: one model, every part a choice.

    Sizes: V vocabulary, T context, L layers, H heads, D width, F hidden width. A field that has no effect on the chosen
    architecture must keep its default; see `unused`.
    """

    vocab_size: int = setting(
        256, "V: vocabulary size, for token files; a tokenizer sets it otherwise", low=1, high=1 << 24
    )
    block_size: int = setting(256, "T: context length in tokens", low=1, high=1 << 20)
    n_layer: int = setting(4, "L: layers", low=1, high=1000)
    n_head: int = setting(4, "H: attention heads", low=1, high=1024)
    n_kv_head: int = setting(
        0, "key-value heads, shared by groups of query heads; 0 means as many as heads", low=0, high=1024
    )
    head_dim: int = setting(0, "width of a head; 0 means n-embd / n-head", low=0, high=1 << 16)
    qkv_bias: str = setting(
        "auto", "biases of queries, keys and values; auto: as --bias", choices=("auto", "on", "off")
    )
    qk_norm: bool = setting(False, "RMS norm of each query and key head, before the rotation")
    score_scale: float = setting(0.0, "factor of attention's scores; 0 means 1 / sqrt(head-dim)", low=0.0, high=1e6)
    window: int = setting(256, "tokens that local attention sees, the newest included", low=1, high=1 << 20)
    n_embd: int = setting(128, "D: width of the hidden state", low=1, high=1 << 16)
    n_hidden: int = setting(0, "F: hidden width of the feed-forward; 0 means 4 n-embd", low=0, high=1 << 18)
    pattern: str = setting("A", f"mixers of the layers, repeated: {MIXER_LETTERS}")
    positions: str = setting("rotary", "positional encoding", choices=("none", "sinusoidal", "learned", "rotary"))
    norm: str = setting(
        "rmsnorm",
        "normalization before each mixer, each feed-forward and the head",
        choices=("none", "layernorm", "rmsnorm"),
    )
    feed_forward: str = setting(
        "swiglu", "activation of the feed-forward", choices=("none", "silu", "gelu", "gelu-tanh", "swiglu")
    )
    residual: bool = setting(True, "residual connections around mixers and feed-forwards")
    parallel: bool = setting(
        False, "mixer and feed-forward of a block read the same hidden state, and both are added to it"
    )
    head: str = setting(
        "tied",
        "from the hidden state to the logits: the embedding again, a matrix, two matrices with a SiLU between, "
        "or none: the last mixer gives the logits",
        choices=("tied", "linear", "mlp", "none"),
    )
    head_hidden: int = setting(0, "hidden width of the mlp head; 0 means 2 n-embd", low=0, high=1 << 18)
    recurrence_size: int = setting(0, "S: state width of the linear recurrence; 0 means 2 n-embd", low=0, high=1 << 17)
    n_inner: int = setting(0, "E: channels inside Mamba; 0 means 2 n-embd", low=0, high=1 << 17)
    ssm_state_size: int = setting(16, "state size of each of Mamba's channels", low=1, high=1024)
    time_step_rank: int = setting(
        0,
        "R: rank of the projection that makes Mamba's time steps; 0 means n-embd / 16, rounded up",
        low=0,
        high=1 << 16,
    )
    conv_kernel: int = setting(4, "K: kernel width of Mamba's convolution, in tokens", low=1, high=64)
    bias: bool = setting(False, "biases in the linear layers and the layer norm")
    dropout: float = setting(
        0.0, "dropout rate after the embedding, in attention and on residual branches", low=0.0, high=0.95
    )
    rope_theta: float = setting(10000.0, "base of the rotary angles", above=0.0, high=1e9)
    rope_scaling: str = setting(
        "",
        "llama3:FACTOR,LOW,HIGH,CONTEXT divides rotary frequencies by FACTOR where the wavelength exceeds "
        "CONTEXT / LOW, keeps those below CONTEXT / HIGH, and blends between (Llama 3.1)",
    )
    rotary_dim: int = setting(0, "columns of a head that are rotated, the first; 0 means all", low=0, high=1 << 16)
    norm_eps: float = setting(1e-5, "epsilon added to the variance in the norms", above=0.0, high=1.0)
    init: str = setting(
        "normal",
        "initial weights: N(0, init-std) with residual projections divided by sqrt(2 L); the same with an identity "
        "added in attention, so that its heads copy (mimetic); or uniform within 1/sqrt(fan in)",
        choices=("normal", "mimetic", "uniform"),
    )
    init_std: float = setting(0.02, "standard deviation of normal and mimetic initial weights", above=0.0, high=10.0)

    def __post_init__(self):
        if isinstance(self.feed_forward, str) and self.feed_forward == "swish":  # another name of SiLU
            object.__setattr__(self, "feed_forward", "silu")
        check(self)
        if set(self.pattern) - set(MIXERS) or not self.pattern:
            raise UserError(f"--pattern {self.pattern!r} is unknown; use the letters {MIXER_LETTERS}")
        if self.positions == "rotary" and set(self.letters).isdisjoint(ROTATED):
            object.__setattr__(self, "positions", "none")
        for name, reason in self.unused.items():
            default = self.__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise UserError(f"{as_flag(name, getattr(self, name))} has no effect {reason}; leave it out")
        if self.head == "none" and (self.residual or self.feed_forward != "none"):
            raise UserError(
                "--head none takes the logits from the last mixer, so nothing may be added to them; "
                "set --no-residual and --feed-forward none"
            )
        for name, default in (
            ("n_kv_head", self.n_head),
            ("n_hidden", 4 * self.n_embd),
            ("head_hidden", 2 * self.n_embd),
            ("recurrence_size", 2 * self.n_embd),
            ("n_inner", 2 * self.n_embd),
            ("time_step_rank", -(-self.n_embd // 16)),
        ):
            if getattr(self, name) == 0 and name not in self.unused:
                object.__setattr__(self, name, default)
        if self.has_attention:
            self._check_heads()

    def _check_heads(self):
        if self.head_dim == 0:
            if self.n_embd % self.n_head:
                raise UserError(
                    f"--n-head {self.n_head} does not divide --n-embd {self.n_embd}; "
                    "choose a divisor, or set --head-dim"
                )
            object.__setattr__(self, "head_dim", self.n_embd // self.n_head)
        if self.qkv_bias != "auto" and self.has_qkv_bias == self.bias:
            raise UserError(f"--qkv-bias {self.qkv_bias} has no effect with {as_flag('bias', self.bias)}; leave it out")
        if self.n_head % self.n_kv_head:
            raise UserError(f"--n-kv-head {self.n_kv_head} does not divide --n-head {self.n_head}; choose a divisor")
        if "N" in self.letters and not self.has_rotation:
            raise UserError(
                f"--pattern {self.pattern} has layers without rotary positions (N), but no other layer has them; use A"
            )
        if not self.has_rotation:
            return
        if self.rotary_dim > self.head_dim:
            raise UserError(
                f"--rotary-dim {self.rotary_dim} is more than a head has, {self.head_dim} columns; "
                "set it lower, or leave it out"
            )
        if self.rotary_width % 2:
            raise UserError(
                f"rotary positions rotate pairs, but {self.rotary_width} columns of a head are rotated; "
                "make --head-dim or --rotary-dim even, or choose other --positions"
            )
        if self.rotary_dim == self.head_dim:
            object.__setattr__(self, "rotary_dim", 0)
        if self.rotary_frequencies and self.rotary_frequencies[0] == 1:
            raise UserError(f"--rope-scaling {self.rope_scaling} has no effect with the factor 1; leave it out")

    @property
    def rotary_width(self):
        """Columns of a head that are rotated."""
        return self.rotary_dim or self.head_dim

    @property
    def rotary_frequencies(self):
        """(factor, low, high, context) of --rope-scaling; None without. UserError if it is malformed."""
        if not self.rope_scaling:
            return None
        kind, _, numbers = self.rope_scaling.partition(":")
        try:
            factor, low, high, context = map(float, numbers.split(","))
            if kind == "llama3" and factor >= 1 and 0 < low < high and 1 <= context < 1e9 and factor < 1e6:
                return factor, low, high, context
        except ValueError:
            pass
        raise UserError(
            f"--rope-scaling {self.rope_scaling!r} is unknown; write llama3:FACTOR,LOW,HIGH,CONTEXT, "
            "for instance llama3:32,1,4,8192"
        )

    @property
    def letters(self):
        """The letter of each layer's mixer: the pattern, repeated over the layers."""
        return (self.pattern * self.n_layer)[: self.n_layer]

    @property
    def has_attention(self):
        """Whether a layer attends to other tokens.

        Otherwise all that the model knows of the past is its recurrent state.
        """
        return not set(self.letters).isdisjoint(ATTENTION)

    @property
    def has_rotation(self):
        """Whether a layer rotates its queries and keys."""
        return self.positions == "rotary" and not set(self.letters).isdisjoint(ROTATED)

    @property
    def has_qkv_bias(self):
        """Whether queries, keys and values have biases."""
        return self.bias if self.qkv_bias == "auto" else self.qkv_bias == "on"

    @property
    def unlimited_context(self):
        """Whether sequences of any length count as a whole: recurrent states only, and no positional table."""
        return not self.has_attention and self.positions == "none"

    @property
    def unused(self):
        """{field: reason} of the fields without effect on this architecture."""
        letters, found = self.letters, {}
        if not self.has_rotation:
            found |= dict.fromkeys(
                ROTARY, f"without {'rotary positions' if self.has_attention else 'attention layers'}"
            )
        for letter, (name, fields) in MIXERS.items():
            if letter not in letters:
                found |= dict.fromkeys(fields, f"without {name} layers")
        if not self.has_attention:
            found |= dict.fromkeys(HEADS, "without attention layers")
            if self.init == "mimetic":
                found["init"] = "without attention layers"
        if self.feed_forward == "none":
            found |= dict.fromkeys(("n_hidden", "parallel"), "without a feed-forward")
        if not self.residual:
            found["parallel"] = "without residual connections"
        if self.head != "mlp":
            found["head_hidden"] = f"with --head {self.head}"
        if self.norm == "none" and not self.qk_norm:
            found["norm_eps"] = "without norms"
        if self.init == "uniform":
            found["init_std"] = f"with --init {self.init}"
        biased = (
            set(letters) & set(ATTENTION + "M")
            or self.feed_forward != "none"
            or self.norm == "layernorm"
            or self.head == "mlp"
        )
        if not biased:
            found["bias"] = "as no part of this model has biases"
        return found


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of linear layers (Hu et al. 2021): W + s A B, where only A and B are trained.

    s = alpha / rank or, with rslora, alpha / sqrt(rank) (Kalajdzievski 2023).
    """

    lora_rank: int = setting(0, "rank of the adapters; 0 trains all weights", low=0, high=1 << 12)
    lora_alpha: float = setting(16.0, "numerator of the adapters' scale", above=0.0, high=1e6)
    lora_targets: str = setting(
        "all", "linear layers with adapters: all, attention, or names such as q,v,gate", many=True
    )
    lora_dropout: float = setting(0.0, "dropout rate of what enters the adapters", low=0.0, high=0.95)
    rslora: bool = setting(False, "scale of alpha / sqrt(rank) instead of alpha / rank")

    def __post_init__(self):
        check(self)

    @property
    def unused(self):
        """{field: reason} of the fields without effect."""
        others = ("lora_alpha", "lora_targets", "lora_dropout", "rslora")
        return {} if self.lora_rank else dict.fromkeys(others, "without --lora-rank")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained, and on what."""

    data: str = setting(
        "stories",
        "what to train on: stories or dialogues (embedded), tinyshakespeare or tinystories (downloaded), "
        "or files, folders and globs",
        many=True,
        path=True,
    )
    val_data: str = setting("", "what to validate on; without it the last tenth of the data", many=True, path=True)
    tokenizer: str = setting(
        "byte",
        "byte, char (the characters of the corpus), stories (the words of the embedded corpora), bpe:N (N tokens "
        "learned from the corpus), gpt2, gpt2-trimmed (those of GPT-2's tokens that the corpus uses), or file:PATH; "
        "a .bin token file needs none",
    )
    documents: str = setting(
        "marker",
        "what separates documents: marker (<|endoftext|>), blank-line, or line (each line is one); csv:COLUMN reads a "
        "column of CSV or Parquet files; rows of JSON files are documents",
    )
    binary: bool = setting(
        False, "read all files byte by byte as they are, and accept binary ones; without it, files are unpacked"
    )
    limit_bytes: int = setting(
        0, "use this much of the data, to the end of a document; 0 uses all", low=0, high=1 << 50
    )
    retention_data: str = setting(
        "", "evaluate the loss on this data too while finetuning, to show forgetting", many=True, path=True
    )
    out_dir: str = setting(
        "", "the run's directory; without it runs/PRESET, or the next free name of that kind", path=True
    )
    max_iters: int = setting(1000, "optimizer updates", low=0, high=10**9)
    epochs: float = setting(
        0.0,
        "passes over the corpus in shuffled order, instead of max-iters random batches; 0 disables",
        low=0.0,
        high=1e6,
    )
    max_time: str = setting(
        "",
        "instead of max-iters, train for this long (90s, 20m, 2h): the schedule follows the clock, so the run ends on "
        "time and is not reproducible bit for bit",
    )
    fit_time: str = setting(
        "",
        "instead of max-iters, fit the number of updates to this long (90s, 20m, 2h) by the speed of the first ones: "
        "the run is reproducible from then on and ends about on time",
    )
    carry_state: bool = setting(
        False,
        "read the data in order, as batch-size contiguous parts, and pass the recurrent state from one window "
        "to the next; gradients stop at the window's edge",
    )
    batch_size: int = setting(16, "B: sequences in a batch", low=1, high=1 << 20)
    grad_accumulation_steps: int = setting(
        1, "micro-batches per update, whose gradients are averaged", low=1, high=1 << 20
    )
    virtual_ranks: int = setting(
        0,
        "parts of an update whose gradients are summed in a fixed tree, a power of two: the run then has the same bits "
        "with --ranks 1, 2, 4, ... up to this; 0 means none, for one process",
        low=0,
        high=1 << 10,
    )
    sync_every: int = setting(
        0,
        "H: ranks train independently and average their weights every H updates, for slow links (DiLoCo); 0 disables",
        low=0,
        high=10**6,
    )
    outer_rate: float = setting(
        0.7, "learning rate of the outer optimizer, which updates the weights at the end of a round", low=0.0, high=10.0
    )
    outer_momentum: float = setting(0.9, "Nesterov momentum of the outer optimizer", low=0.0, high=0.999999)
    exchange: str = setting(
        "fp32",
        "precision of what ranks exchange: of the gradients that virtual ranks sum (fp32, bf16), or of the changes of "
        "the weights with --sync-every (also int8)",
        choices=("fp32", "bf16", "int8"),
    )
    recompute: bool = setting(
        False,
        "compute each block again in backward instead of saving its activations: the same bits in less memory, at "
        "about a fifth more time",
    )
    learning_rate: float = setting(1e-3, "peak learning rate", low=0.0, high=10.0)
    min_lr: float = setting(
        -1.0,
        f"learning rate at the end of the schedule; -1 means {MIN_SHARE:g} of learning-rate",
        low=-1.0,
        high=10.0,
    )
    warmup_iters: int = setting(100, "updates over which the learning rate rises linearly from zero", low=0, high=10**9)
    lr_decay_iters: int = setting(
        0, "update at which the rate reaches min-lr; 0 means the last; max-time sets it otherwise", low=0, high=10**9
    )
    lr_schedule: str = setting(
        "cosine", "learning rate after warmup", choices=("constant", "cosine", "linear", "stable-decay")
    )
    optimizer: str = setting(
        "adamw",
        "adamw; or muon, which orthogonalizes the updates of the matrices in the blocks and learns more per update",
        choices=("adamw", "muon"),
    )
    matrix_rate: float = setting(
        2.5, "learning rate of these matrices with --optimizer muon, as a multiple of the others'", low=0.0, high=1e3
    )
    weight_decay: float = setting(0.1, "decoupled weight decay", low=0.0, high=10.0)
    decay: str = setting("matrices", "which tensors decay: those with two axes, or all", choices=("matrices", "all"))
    beta1: float = setting(0.9, "AdamW's decay rate of the first moment", low=0.0, high=0.999999)
    beta2: float = setting(0.95, "AdamW's decay rate of the second moment", low=0.0, high=0.999999)
    grad_clip: float = setting(1.0, "clip the norm of the whole gradient to this; 0 disables", low=0.0, high=1e9)
    max_spectral_norm: float = setting(
        0.0,
        "largest spectral norm of each linear recurrence's A, which is scaled down to it after an update; 0 disables",
        low=0.0,
        high=1e9,
    )
    eval_interval: int = setting(
        0, "updates between evaluations of both splits; 0 means a tenth of the run", low=0, high=10**9
    )
    eval_iters: int = setting(20, "batches per split in an evaluation", low=1, high=10**6)
    log_interval: int = setting(10, "updates between rows of metrics.jsonl; the log has fewer lines", low=1, high=10**9)
    save_interval: int = setting(
        0, "updates between checkpoints to resume from; 0 means a tenth of the run", low=0, high=10**9
    )
    patience: int = setting(
        0, "stop after this many evaluations without a lower validation loss; 0 disables", low=0, high=10**6
    )
    seed: int = setting(1337, "seed of the initial weights, batches, dropout and samples", low=0, high=(1 << 63) - 1)
    threads: int = setting(0, "threads; 0 means one per core", low=0, high=1024)
    kernels: str = setting(
        "auto",
        "CPU kernels: numba (compiled, fast), numpy (plain NumPy, compiles nothing), "
        "or auto: $SLM_NP_KERNELS, else numba",
        choices=KERNEL_SETS,
    )
    dtype: str = setting(
        "auto",
        "precision of matmuls: fp32; bf16 or, on a GPU, fp16, both with float32 accumulation; "
        "auto, the fastest on the device",
        choices=DTYPES,
    )
    device: str = setting("cpu", "where to run; cuda is an NVIDIA GPU", choices=DEVICES)

    def __post_init__(self):
        check(self)
        if self.min_lr == -1.0:
            object.__setattr__(self, "min_lr", MIN_SHARE * self.learning_rate)
        if self.min_lr < 0.0:
            raise UserError(f"--min-lr is {self.min_lr}; it must be at least 0, or -1")
        if self.min_lr > self.learning_rate:
            raise UserError(f"--min-lr {self.min_lr} is above --learning-rate {self.learning_rate}; lower --min-lr")
        check_documents(self.documents)
        check_lengths({name: getattr(self, name) for name in LENGTHS if name != "max_iters"})
        if self.virtual_ranks and self.sync_every:
            raise UserError(
                "--virtual-ranks sums gradients in every update, but with --sync-every ranks train by themselves; "
                "leave one of them out"
            )
        if self.virtual_ranks and self.exchange == "int8":
            raise UserError("--exchange int8 is for --sync-every; choose fp32 or bf16")
        if self.virtual_ranks & (self.virtual_ranks - 1):
            raise UserError(f"--virtual-ranks {self.virtual_ranks} is not a power of two; choose 2, 4, 8, ...")
        self.max_seconds, self.fit_seconds  # malformed durations are refused here

    @property
    def unused(self):
        """{field: reason} of the fields without effect in this recipe."""
        found = {}
        if self.lr_schedule == "constant":
            found |= dict.fromkeys(("min_lr", "lr_decay_iters"), "with --lr-schedule constant")
        if self.max_time:
            found["lr_decay_iters"] = f"with --max-time {self.max_time}"
        if self.optimizer != "muon":
            found["matrix_rate"] = f"with --optimizer {self.optimizer}"
        if not self.weight_decay:
            found["decay"] = "with --weight-decay 0"
        if not self.virtual_ranks and not self.sync_every:
            found["exchange"] = "without --virtual-ranks or --sync-every"
        if not self.sync_every:
            found |= dict.fromkeys(("outer_rate", "outer_momentum"), "without --sync-every")
        return found

    @property
    def max_seconds(self):
        """`max_time` in seconds, 0.0 if it is not set. Raises UserError as `duration_seconds`."""
        return duration_seconds("max_time", self.max_time)

    @property
    def fit_seconds(self):
        """`fit_time` in seconds, 0.0 if it is not set. Raises UserError as `duration_seconds`."""
        return duration_seconds("fit_time", self.fit_time)


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is sampled; the defaults and the order are llama.cpp's."""

    temp: float = setting(0.8, "temperature, which divides the logits; 0 takes the likeliest token", low=0.0)
    top_k: int = setting(40, "keep the k likeliest tokens; 0 disables", low=0)
    top_p: float = setting(
        0.95, "keep the fewest likeliest tokens whose probability reaches p; 1 disables", above=0.0, high=1.0
    )
    min_p: float = setting(
        0.05, "keep tokens at least this share as likely as the likeliest; 0 disables", low=0.0, high=1.0
    )
    repeat_penalty: float = setting(1.0, "penalty on tokens that occurred lately; 1 disables", low=1e-6, high=1e6)
    repeat_last_n: int = setting(64, "how many tokens back the penalty looks; 0 disables", low=0)
    samplers: str = setting(",".join(SAMPLERS), "which of these are applied, in this order, separated by commas")
    min_confidence: float = setting(
        0.0,
        "stop when the likeliest token stays less probable than this, and drop the uncertain tail; 0 disables",
        low=0.0,
        high=1.0,
    )
    confidence_patience: int = setting(3, "for how many tokens it must stay below min-confidence", low=1)
    seed: int = setting(0, "seed of the samples", low=0, high=(1 << 63) - 1)

    def __post_init__(self):
        check(self)
        if self.min_p == 1.0:
            raise UserError(f"--min-p is {self.min_p}; it must be below 1 (for the likeliest token alone use --temp 0)")
        names = self.samplers.split(",")
        for i, name in enumerate(names):
            if name not in SAMPLERS:
                raise UserError(f"--samplers {name!r} is unknown; {near(name, SAMPLERS)}")
            if name in names[:i]:
                raise UserError(f"--samplers has {name!r} twice; give it once")

    @property
    def unused(self):
        """{field: reason} of the fields without effect on the samples."""
        found, names = {}, self.samplers.split(",")
        if self.temp <= 1e-6 and "temp" in names:
            found |= dict.fromkeys(
                ("top_k", "top_p", "min_p"), f"with --temp {self.temp:g}, which takes the likeliest token"
            )
        if self.repeat_penalty == 1:
            found["repeat_last_n"] = "without --repeat-penalty"
        if self.repeat_last_n == 0:
            found["repeat_penalty"] = "with --repeat-last-n 0"
        for name in set(SAMPLERS) - set(names):
            fields = ("repeat_penalty", "repeat_last_n") if name == "penalty" else (name.replace("-", "_"),)
            found |= dict.fromkeys(fields, f"without {name} in --samplers {self.samplers}")
        if self.min_confidence == 0:
            found["confidence_patience"] = "without --min-confidence"
        return found
