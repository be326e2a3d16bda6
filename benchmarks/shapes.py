"""The shapes that the benchmarks run, and how many operations one of their training steps takes.

Sizes: V vocabulary, L layers, H heads, D width, F hidden width, T steps, B batch, N = B T tokens.
"""

import checkout  # noqa: F401

from slm_np.config import ModelConfig
from slm_np.errors import UserError, near
from slm_np.presets import GPT2, LLAMA, PRESETS

SHAPES = {  # name: (settings of the model, B)
    "char": (dict(GPT2, vocab_size=256, n_layer=4, n_head=4, n_embd=128, block_size=64, bias=True), 12),
    "char10m": (dict(GPT2, vocab_size=256, n_layer=6, n_head=6, n_embd=384, block_size=256, bias=True), 16),
    "slim": (dict(LLAMA, vocab_size=4096, n_layer=6, n_head=8, n_embd=256, n_hidden=1024, block_size=256), 16),
    "smallm": (dict(GPT2, vocab_size=50257, n_layer=6, n_head=6, n_embd=384, block_size=128, bias=True), 32),
    "byte-transformer": (PRESETS["byte-transformer"]["model"], 4),
    "byte-ssm": (PRESETS["byte-ssm"]["model"], 16),
    "mamba": (PRESETS["mamba"]["model"], 8),
    "stories": (dict(PRESETS["stories"]["model"], vocab_size=2304), 8),
}

# What the selective scan costs for one state of one channel at one step, in operations of a matmul: its vector
# instructions, doubled, since one multiply-add is two operations. Forward takes 10 for the exponential and 4 around it;
# backward recomputes the states and takes 8 more.
SCAN_FORWARD, SCAN_BACKWARD = 2 * (10 + 4), 2 * (10 + 4 + 8)


def shape(name):
    """(ModelConfig, B) of a shape."""
    settings, batch = SHAPES[name]
    return ModelConfig(**settings), batch


def names_of(text):
    """The names in `text`, separated by commas. UserError if one is no shape."""
    names = text.split(",")
    for name in names:
        if name not in SHAPES:
            raise UserError(f"--shapes {name!r} is unknown; {near(name, SHAPES)}")
    return names


def matmuls(config, batch):
    """[(m, k, n, count)] of the matmuls x W of one forward pass, x (m, k), W (k, n).

    Backward has two more of the same size for each, dout W^T and x^T dout.
    """
    n, d, letters = batch * config.block_size, config.n_embd, config.letters
    heads, qkv = config.n_head * config.head_dim, (config.n_head + 2 * config.n_kv_head) * config.head_dim
    channels, rank, states = config.n_inner, config.time_step_rank, config.recurrence_size
    found = []
    for letter in dict.fromkeys(letters):
        count = letters.count(letter)
        logits = int(config.head == "none" and letter == letters[-1])  # the last mixer gives the logits
        outputs = [(size, k) for size, k in ((d, count - logits), (config.vocab_size, logits)) if k]
        if letter == "A":
            found += [(n, d, qkv, count), *((n, heads, size, k) for size, k in outputs)]
        elif letter == "M":
            found += [
                (n, d, 2 * channels, count),
                (n, channels, rank + 2 * config.ssm_state_size, count),
                (n, rank, channels, count),
                *((n, channels, size, k) for size, k in outputs),
            ]
        else:  # the time loop has one matmul per step
            found += [
                (n, d, states, count),
                (batch, states, states, config.block_size * count),
                *((n, width, size, k) for size, k in outputs for width in (states, d)),
            ]
    if config.feed_forward != "none":
        gates = 2 if config.feed_forward == "swiglu" else 1
        found += [(n, d, gates * config.n_hidden, config.n_layer), (n, config.n_hidden, d, config.n_layer)]
    if config.head == "mlp":
        return found + [(n, d, config.head_hidden, 1), (n, config.head_hidden, config.vocab_size, 1)]
    return found + [(n, d, config.vocab_size, 1)] * (config.head != "none")


def attention_operations(config, batch):
    """Operations of attention's matmuls in one step, without the upper triangle.

    Two matmuls forward and five backward, which recomputes the scores.
    """
    pairs = batch * config.n_head * config.block_size * (config.block_size + 1) // 2
    return 7 * 2 * pairs * config.head_dim * config.letters.count("A")


def scan_operations(config, batch):
    """What the selective scans of one step cost, in operations of a matmul."""
    states = batch * config.block_size * config.n_inner * config.ssm_state_size
    return (SCAN_FORWARD + SCAN_BACKWARD) * states * config.letters.count("M")


def operations(config, batch):
    """Floating-point operations of one training step: its matmuls, and its scans as if they were matmuls."""
    linear = sum(6 * m * k * n * count for m, k, n, count in matmuls(config, batch))
    return linear + attention_operations(config, batch) + scan_operations(config, batch)
