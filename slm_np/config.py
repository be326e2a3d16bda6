"""Settings: frozen dataclasses, one line per field. The commands' flags and `--config` files are made from them."""

import dataclasses
import math
from dataclasses import dataclass

from slm_np.errors import UserError, near
from slm_np.training.precision import DTYPES

DEVICES = ("cpu", "cuda")


def setting(default, help, *, low=None, high=None, choices=None, above=None, many=False):
    """A field with its one-line description and the values it may take: `low <= value <= high`, `value > above`, or `choices`.

    many: flags and files may give several, which are joined by commas.
    """
    return dataclasses.field(
        default=default, metadata=dict(help=help, low=low, high=high, choices=choices, above=above, many=many)
    )


def check(settings):
    """Raise `UserError` if a field of the dataclass `settings` has the wrong type or lies outside what `setting` allows."""
    for field in dataclasses.fields(settings):
        value, rule = getattr(settings, field.name), field.metadata
        flag = "--" + field.name.replace("_", "-")
        kind = type(field.default)
        if type(value) is int and value.bit_length() > 1000:  # more than float() can take and str() may print
            raise UserError(f"{flag} is an integer of {value.bit_length()} bits; it must be below 1e300 in size")
        if kind is float and type(value) is int:
            object.__setattr__(settings, field.name, value := float(value))
        if type(value) is not kind:
            raise UserError(f"{flag} must be of type {kind.__name__}, not {value!r}")
        if rule["choices"] and value not in rule["choices"]:
            raise UserError(f"{flag} {value!r} is unknown; {near(value, rule['choices'])}")
        if kind in (int, float):
            if not math.isfinite(value):
                raise UserError(f"{flag} is {value}; it must be a finite number")
            if rule["low"] is not None and value < rule["low"]:
                raise UserError(f"{flag} is {value}; it must be at least {rule['low']}")
            if rule["above"] is not None and value <= rule["above"]:
                raise UserError(f"{flag} is {value}; it must be greater than {rule['above']}")
            if rule["high"] is not None and value > rule["high"]:
                raise UserError(f"{flag} is {value}; it must be at most {rule['high']}")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: one trunk, every part a choice. Sizes: V vocabulary, T context, L layers, H heads, D width, F hidden width."""

    vocab_size: int = setting(
        256, "V: pieces in the vocabulary, for token files; elsewhere the tokenizer says it", low=1, high=1 << 24
    )
    block_size: int = setting(256, "T: context length in tokens", low=1, high=1 << 20)
    n_layer: int = setting(4, "L: layers", low=1, high=1000)
    n_head: int = setting(4, "H: attention heads", low=1, high=1024)
    n_kv_head: int = setting(
        0, "key-value heads shared by groups of query heads; 0 means as many as heads", low=0, high=1024
    )
    head_dim: int = setting(0, "width of a head; 0 means n-embd / n-head", low=0, high=1 << 16)
    n_embd: int = setting(128, "D: width of the residual stream", low=1, high=1 << 16)
    n_hidden: int = setting(0, "F: hidden width of the feed-forward; 0 means 4 n-embd", low=0, high=1 << 18)
    pattern: str = setting("A", "mixers of the layers, repeated over them: A attention, M Mamba, S linear recurrence")
    positions: str = setting(
        "rotary", "how a token knows its place", choices=("none", "sinusoidal", "learned", "rotary")
    )
    norm: str = setting(
        "rmsnorm",
        "normalisation before each mixer, each feed-forward and the head",
        choices=("none", "layernorm", "rmsnorm"),
    )
    feed_forward: str = setting(
        "swiglu", "the feed-forward's activation", choices=("none", "silu", "gelu", "gelu-tanh", "swiglu")
    )
    residual: bool = setting(
        True, "mixers and feed-forwards add to the stream; without it what they give is the stream"
    )
    head: str = setting(
        "tied",
        "from the stream to the logits: the embedding again, a matrix, two with a silu between, or none: the last mixer gives the logits",
        choices=("tied", "linear", "mlp", "none"),
    )
    head_hidden: int = setting(0, "hidden width of the mlp head; 0 means 2 n-embd", low=0, high=1 << 18)
    recurrence_size: int = setting(
        0, "S: numbers in the state of the linear recurrence; 0 means 2 n-embd", low=0, high=1 << 17
    )
    n_inner: int = setting(0, "E: channels inside Mamba; 0 means 2 n-embd", low=0, high=1 << 17)
    ssm_state_size: int = setting(16, "numbers in the state of each of Mamba's channels", low=1, high=1024)
    time_step_rank: int = setting(
        0,
        "R: inner width of the projection that makes Mamba's time steps; 0 means n-embd / 16, rounded up",
        low=0,
        high=1 << 16,
    )
    conv_kernel: int = setting(4, "K: tokens that Mamba's convolution sees", low=1, high=64)
    bias: bool = setting(False, "biases in the linear layers and the layer norm")
    dropout: float = setting(
        0.0, "share of values dropped after the embedding, in attention and on residual branches", low=0.0, high=0.95
    )
    rope_theta: float = setting(10000.0, "base of the rotary angles", above=0.0, high=1e9)
    norm_eps: float = setting(1e-5, "added to the variance in the norms", above=0.0, high=1.0)
    init: str = setting(
        "normal",
        "initial weights: N(0, init-std) with residual projections over sqrt(2 L), or uniform within 1/sqrt(fan in)",
        choices=("normal", "uniform"),
    )
    init_std: float = setting(0.02, "standard deviation of normal initial weights", above=0.0, high=10.0)

    def __post_init__(self):
        check(self)
        for name, default in (
            ("n_kv_head", self.n_head),
            ("n_hidden", 4 * self.n_embd),
            ("head_hidden", 2 * self.n_embd),
            ("recurrence_size", 2 * self.n_embd),
            ("n_inner", 2 * self.n_embd),
            ("time_step_rank", -(-self.n_embd // 16)),
        ):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, default)
        if set(self.pattern) - set("AMS") or not self.pattern:
            raise UserError(
                f"--pattern {self.pattern!r} is unknown; it is made of the letters A (attention), M (Mamba) and S (linear recurrence)"
            )
        if self.head == "none" and (self.residual or self.feed_forward != "none"):
            raise UserError(
                "--head none takes the logits from the last mixer, so nothing may be added to them; set --no-residual and --feed-forward none"
            )
        if self.head_dim == 0:
            if self.has_attention and self.n_embd % self.n_head:
                raise UserError(
                    f"--n-head {self.n_head} does not divide --n-embd {self.n_embd}; choose a divisor, or set --head-dim"
                )
            object.__setattr__(self, "head_dim", max(1, self.n_embd // self.n_head))
        if self.has_attention and self.n_head % self.n_kv_head:
            raise UserError(f"--n-kv-head {self.n_kv_head} does not divide --n-head {self.n_head}; choose a divisor")
        if self.positions == "rotary" and self.head_dim % 2 and self.has_attention:
            raise UserError(
                f"rotary positions turn pairs, but a head is {self.head_dim} wide; make --head-dim even or choose other --positions"
            )

    @property
    def letters(self):
        """The letter of each layer's mixer: the pattern, repeated over the layers."""
        return (self.pattern * self.n_layer)[: self.n_layer]

    @property
    def has_attention(self):
        """Whether a layer attends to other tokens; else all that the model knows of the past is the state it carries."""
        return "A" in self.letters

    @property
    def unlimited_context(self):
        """Whether a text may be of any length and is known as a whole: a state carries it, and no table of positions ends."""
        return not self.has_attention and self.positions in ("none", "rotary")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained, and on what."""

    data: str = setting(
        "stories",
        "what to train on: stories or dialogues (embedded), tinyshakespeare or tinystories (downloaded), or files, folders and globs",
        many=True,
    )
    val_data: str = setting("", "what to validate on; without it the last tenth of the data", many=True)
    tokenizer: str = setting(
        "byte",
        "byte, char (the characters of the corpus), bpe:N (N pieces learnt from it), gpt2, or file:PATH; a .bin token file needs none",
    )
    documents: str = setting(
        "marker",
        "what stands between documents: a line <|endoftext|>, or a blank line; rows of a .jsonl file are documents",
        choices=("marker", "blank-line"),
    )
    limit_bytes: int = setting(
        0, "take this much of the data, to the end of a document; 0 takes all", low=0, high=1 << 50
    )
    replay_data: str = setting(
        "", "text of another kind whose loss is watched too, so that forgetting shows", many=True
    )
    out_dir: str = setting("", "the run's directory; without it runs/PRESET, or the next free name of that kind")
    max_iters: int = setting(1000, "optimiser updates", low=0, high=10**9)
    epochs: float = setting(
        0.0,
        "passes over the corpus in shuffled order, instead of max-iters random batches; 0 is off",
        low=0.0,
        high=1e6,
    )
    max_time: str = setting("", "train for this long (90s, 20m, 2h) and fit the schedule to it, instead of max-iters")
    carry_state: bool = setting(
        False,
        "cut the data into as many streams as a batch has windows, read each in order, and hand the mixers' state from one window to the next; "
        "gradients stop at the window's edge",
    )
    batch_size: int = setting(16, "B: windows in a batch", low=1, high=1 << 20)
    grad_accumulation_steps: int = setting(1, "batches whose mean gradient makes one update", low=1, high=1 << 20)
    learning_rate: float = setting(1e-3, "peak learning rate", low=0.0, high=10.0)
    min_lr: float = setting(1e-4, "learning rate at the schedule's end", low=0.0, high=10.0)
    warmup_iters: int = setting(100, "updates over which the rate rises linearly from zero", low=0, high=10**9)
    lr_decay_iters: int = setting(
        0,
        "update at which the rate reaches min-lr; 0 means the last; under max-time the clock says it",
        low=0,
        high=10**9,
    )
    lr_schedule: str = setting(
        "cosine", "course of the rate after warmup", choices=("constant", "cosine", "linear", "stable-decay")
    )
    weight_decay: float = setting(0.1, "decoupled weight decay", low=0.0, high=10.0)
    decay: str = setting("matrices", "which tensors decay: those with two axes, or all", choices=("matrices", "all"))
    beta1: float = setting(0.9, "AdamW's decay of the mean of gradients", low=0.0, high=0.999999)
    beta2: float = setting(0.95, "AdamW's decay of the mean of squared gradients", low=0.0, high=0.999999)
    grad_clip: float = setting(1.0, "largest norm of the whole gradient; 0 is off", low=0.0, high=1e9)
    max_spectral_norm: float = setting(
        0.0,
        "largest spectral norm of each linear recurrence's A, which is scaled down to it after an update; 0 is off",
        low=0.0,
        high=1e9,
    )
    eval_interval: int = setting(250, "updates between evaluations of both splits", low=1, high=10**9)
    eval_iters: int = setting(20, "batches per split in an evaluation", low=1, high=10**6)
    log_interval: int = setting(10, "updates between lines of the log", low=1, high=10**9)
    save_interval: int = setting(250, "updates between checkpoints to resume from", low=1, high=10**9)
    patience: int = setting(
        0, "stop after so many evaluations without a lower validation loss; 0 is off", low=0, high=10**6
    )
    seed: int = setting(1337, "seed of the initial weights, batches, dropout and samples", low=0, high=(1 << 63) - 1)
    threads: int = setting(0, "threads; 0 means one per core", low=0, high=1024)
    dtype: str = setting(
        "auto",
        "precision: fp32; bf16 or, on a GPU, fp16: products of 16 bits with float32 sums; auto, the one that the device multiplies fastest",
        choices=DTYPES,
    )
    device: str = setting("cpu", "where to run; cuda is an NVIDIA GPU", choices=DEVICES)

    def __post_init__(self):
        check(self)
        if self.min_lr > self.learning_rate:
            raise UserError(f"--min-lr {self.min_lr} is above --learning-rate {self.learning_rate}; lower it")
        if self.epochs and self.max_time:
            raise UserError(f"--epochs {self.epochs} and --max-time {self.max_time} both say when to stop; give one")
        self.max_seconds  # a malformed --max-time is refused here

    @property
    def max_seconds(self):
        """`max_time` in seconds, 0.0 when it is not set. UserError if it is not a positive number with s, m or h."""
        if not self.max_time:
            return 0.0
        unit = {"s": 1, "m": 60, "h": 3600}.get(self.max_time[-1])
        try:
            seconds = float(self.max_time[:-1]) * unit
            if not 0 < seconds < 1e9:
                raise ValueError
            return seconds
        except (ValueError, TypeError):
            raise UserError(f"--max-time {self.max_time!r} is not a duration; write 90s, 20m or 2h") from None
