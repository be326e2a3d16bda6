"""The shapes that the benchmarks run, and the products of one training step. Sizes: V vocabulary, L layers, H heads, D width, F hidden, T steps, B batch."""

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
}
# Of the selective scan, for one state of one channel at one step: twice the vector instructions, as one of a product's is two operations. Forward
# an exponential is 10 and what is around it 4; backward makes the states again and has 8 more.
SCAN_FORWARD, SCAN_BACKWARD = 28, 44


def shape(name):
    """(ModelConfig, B) of a shape."""
    settings, batch = SHAPES[name]
    return ModelConfig(**settings), batch


def names_of(text):
    """The shapes named in `text`, separated by commas. UserError if one is unknown."""
    names = text.split(",")
    for name in names:
        if name not in SHAPES:
            raise UserError(f"--shapes {name!r} is unknown; {near(name, SHAPES)}")
    return names


def products(config, batch):
    """[(m, k, n, how often)] of the forward products x W of one step, x (m, k), W (k, n); backward has dy W^T and x^T dy of each."""
    n, d = batch * config.block_size, config.n_embd
    heads, qkv = config.n_head * config.head_dim, (config.n_head + 2 * config.n_kv_head) * config.head_dim
    found, channels, selected, states = (
        [],
        config.n_inner,
        config.time_step_rank + 2 * config.ssm_state_size,
        config.recurrence_size,
    )
    for letter in dict.fromkeys(config.letters):
        count, last = config.letters.count(letter), int(config.head == "none" and letter == config.letters[-1])
        ends = [
            (size, k) for size, k in ((d, count - last), (config.vocab_size, last)) if k
        ]  # the last mixer may give the logits
        if letter == "A":
            found += [(n, d, qkv, count), *((n, heads, size, k) for size, k in ends)]
        elif letter == "M":
            found += [
                (n, d, 2 * channels, count),
                (n, channels, selected, count),
                (n, config.time_step_rank, channels, count),
                *((n, channels, size, k) for size, k in ends),
            ]
        else:  # the walk through time is a product a step
            found += [
                (n, d, states, count),
                (batch, states, states, config.block_size * count),
                *((n, k, size, times) for size, times in ends for k in (states, d)),
            ]
    if config.feed_forward != "none":
        found += [
            (n, d, config.n_hidden * (2 if config.feed_forward == "swiglu" else 1), config.n_layer),
            (n, config.n_hidden, d, config.n_layer),
        ]
    if config.head == "mlp":
        return found + [(n, d, config.head_hidden, 1), (n, config.head_hidden, config.vocab_size, 1)]
    return found + [(n, d, config.vocab_size, 1)] * (config.head != "none")


def attention_operations(config, batch):
    """Operations of attention's products in one step, the upper triangle not counted: two forward, five backward (the scores are made again)."""
    pairs = batch * config.n_head * config.block_size * (config.block_size + 1) // 2
    return 7 * 2 * pairs * config.head_dim * config.letters.count("A")


def scan_operations(config, batch):
    """What the selective scan's instructions of one step would be as operations of a product."""
    return (
        (SCAN_FORWARD + SCAN_BACKWARD)
        * batch
        * config.block_size
        * config.n_inner
        * config.ssm_state_size
        * config.letters.count("M")
    )


def operations(config, batch):
    """Floating-point operations of all products of one training step, and what else takes as long."""
    return (
        sum(6 * m * k * n * count for m, k, n, count in products(config, batch))
        + attention_operations(config, batch)
        + scan_operations(config, batch)
    )
