"""Settings for a user's own text: what the preset `own-text` leaves to the size of the text and the time of training.

A model with N parameters in its blocks that reads D tokens takes about 6 N D operations. They are divided so that D is
about TOKENS_PER_PARAMETER N, and a short text gets a smaller model. All figures are at the top of this file.
"""

import math

from slm_np.config import lengths
from slm_np.presets import PRESETS
from slm_np.words import counted

PRESET = "own-text"
TOKENS_PER_PARAMETER = 6  # read in training
BYTES_PER_PARAMETER = 0.5  # of text, at least
WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768)
LAYERS = ((192, 4), (384, 6), (math.inf, 8))  # (widest, layers)
HEAD_COLUMNS = ((448, 32), (math.inf, 64))  # (widest, columns of a head)
DROPOUT = ((8, 0.0), (20, 0.1), (math.inf, 0.2))  # (most passes over the text, rate)
MOST_PASSES = 60  # over the text, unless the length of training is given
SHORT, CONTEXTS = 50_000, (128, 256)  # bytes below which a text is short; context of a short text and of others
CONTEXTS_IN_TEXT = 20  # at least, so that the held-out tenth has two
VOCABULARIES = (512, 8192)
BATCH_TOKENS, LONG_RUN = 2048, 20e6  # tokens of a batch, if a run reads at most so many; it grows with the square root
BATCH_SIZES, UPDATES = (4, 32), 500  # sequences; updates in a run, at least
SPELLED = ("byte", "char")  # with these, attention that starts by copying raises the loss
NARROW = 64  # width at which the matmuls run at half of the rate of wide ones
TOO_SHORT = 100_000  # bytes of text below which more text would help most

# Operations per second of training a wide model, roughly: of a core by what its matmuls run on, or of a GPU.
RATES = {
    "AMX": 3e11,
    "AVX512-BF16": 2e11,
    "AVX-512": 1.2e11,
    "AVX2": 8e10,
    "NEON": 3e10,
    "Accelerate": 1e11,
    "NumPy": 5e10,
    "register": 1e10,  # other register tiles
    "cuda": 3e13,
}


def chosen(n_bytes, operations, given, where="this machine"):
    """(model, train, lines): {field: value} of ModelConfig and of TrainConfig, and two lines that say what and why.

    n_bytes: of the text.   operations: of the whole run, unless the given length is in updates or epochs
    given: {field: value} of both that the user sets, each within its limits. The others follow from them.
    where: the machine, in words
    """
    wanted = min(math.sqrt(operations / (6 * TOKENS_PER_PARAMETER)), n_bytes / BYTES_PER_PARAMETER)
    width = given.get("n_embd") or _width(wanted, given)
    blocks = _parameters(width, given)
    tokenizer = given.get("tokenizer") or _tokenizer(n_bytes, blocks // width, given)
    vocabulary, token_bytes = _vocabulary(tokenizer)
    text = n_bytes / token_bytes  # in tokens
    context = given.get("block_size") or max(
        8, min(CONTEXTS[n_bytes >= SHORT], _power_of_two(text / CONTEXTS_IN_TEXT, math.floor))
    )
    most = math.inf if lengths(given) else MOST_PASSES * text  # tokens to read
    if given.get("epochs"):
        planned = given["epochs"] * text
    else:  # a number of updates says nothing of how large they should be
        planned = LONG_RUN if "max_iters" in given else min(most, operations / (6 * wanted))
    batch = given.get("batch_size") or _sequences(planned, context)
    update = batch * context * given.get("grad_accumulation_steps", 1)
    cost = 6 * (blocks + vocabulary * width) * (1 + NARROW / width)  # operations per token
    if given.get("epochs"):
        read, length = given["epochs"] * text, f"{given['epochs']:g} epochs"
    elif "max_iters" in given:
        read, length = given["max_iters"] * update, counted(given["max_iters"], "update")
    else:
        read, length = operations / cost, time_of(given)
    train = dict(tokenizer=tokenizer, batch_size=batch)
    if read > most:
        updates = max(1, round(most / update))
        read, length = updates * update, counted(updates, "update")
        train |= dict(max_iters=updates, fit_time="")
    passes = read / text
    dropout = given.get("dropout", next(rate for most, rate in DROPOUT if passes <= most or most == math.inf))

    gated = given.get("feed_forward", "swiglu") == "swiglu"
    model = dict(
        n_layer=_layers(width, given),
        n_head=given.get("n_head") or _heads(width, given),
        n_embd=width,
        n_hidden=_rounded(8 * width / 3) if gated else 0,
        block_size=context,
        dropout=dropout,
        init="normal" if tokenizer in SPELLED else "mimetic",
    )
    lines = [
        f"own text: {counted(n_bytes, 'byte')} and {length} on {where} (about {_amount(cost * read / 1e15)} PFLOP): "
        f"{counted(model['n_layer'], 'layer')} of width {width} on {tokenizer}, {counted(context, 'token')} of context",
        _about_passes(passes, dropout, given)
        + f"; change anything by its flag, for instance {_example(width, dropout, given)}"
        + "; more text would help more than anything else" * (n_bytes < TOO_SHORT),
    ]
    return model, train, lines


def time_of(given):
    """The time of a run: that of the settings {field: value} if they give one, else the preset's."""
    return given.get("max_time") or given.get("fit_time") or PRESETS[PRESET]["train"]["fit_time"]


def rate_of(on, dtype):
    """Operations per second of training on a Device with this --dtype, roughly.

    It is not timed, so the same machine always makes the same choices.
    """
    if on.name != "cpu":
        return RATES["cuda"]
    unit = on.kernels.matmul_name().split()[0]
    if on.resolve_dtype(dtype) == "bf16" and on.kernels.bfloat16_unit().fast:
        from slm_np.kernels.cpu.microkernel_bf16 import AMX

        unit = "AMX" if AMX else "AVX512-BF16"
    return on.kernels.thread_count() * RATES[unit]


def _layers(width, given):
    return given.get("n_layer") or next(layers for widest, layers in LAYERS if width <= widest)


def _parameters(width, given):
    """Parameters of the blocks: 4 D^2 of attention and 8 D^2 of the feed-forward in each layer."""
    return 12 * _layers(width, given) * width**2


def _width(wanted, given):
    """The width whose blocks come nearest to the `wanted` number of parameters, of those that the heads divide."""
    heads = 1 if given.get("head_dim") else given.get("n_head") or given.get("n_kv_head") or 1
    fit = [width for width in WIDTHS if width % heads == 0] or WIDTHS
    return min(fit, key=lambda width: abs(math.log(_parameters(width, given) / wanted)))


def _heads(width, given):
    """As many heads as the width has of HEAD_COLUMNS, or fewer that divide it, in whole groups per key-value head."""
    columns = next(columns for widest, columns in HEAD_COLUMNS if width <= widest)
    columns, groups = max(columns, given.get("rotary_dim", 0)), given.get("n_kv_head") or 1
    if given.get("head_dim"):
        return groups * max(1, width // given["head_dim"] // groups)
    fit = (n for n in range(width // columns, 0, -1) if width % (2 * n) == 0 and n % groups == 0)
    return next(fit, groups)


def _tokenizer(n_bytes, most, given):
    """Bytes for a short text or a binary one, else byte pairs: more tokens for a longer text, but at most `most`."""
    if n_bytes < SHORT or given.get("binary"):
        return "byte"
    wanted = 2 ** round(10 + 1.3 * math.log10(n_bytes / 1e6))  # 1,024 at 1 MB, 4,096 at 20 MB
    return f"bpe:{_within(min(wanted, _power_of_two(most, math.floor)), *VOCABULARIES)}"


def _sequences(tokens, context):
    """Sequences in a batch of a run that reads about so many tokens."""
    batch = min(BATCH_TOKENS * math.sqrt(max(1.0, tokens / LONG_RUN)), tokens / UPDATES)
    return _within(_power_of_two(batch / context, round), *BATCH_SIZES)


def _vocabulary(tokenizer):
    """(tokens, bytes of English text per token) of a --tokenizer, roughly."""
    kind, _, size = tokenizer.partition(":")
    if kind in SPELLED:
        return 256, 1.0
    tokens = int(size) if kind == "bpe" and size.isdecimal() and len(size) < 8 else 50_257
    return tokens, min(4.4, 0.45 * math.log2(max(256, tokens)) - 2)


def _about_passes(passes, dropout, given):
    part = f"about {passes:.0%}" if passes >= 0.01 else "less than 1%"
    often = f"the text about {_amount(passes)} times" if passes >= 1 else f"{part} of the text"
    why = f", so {f'dropout is {dropout:g}' if dropout else 'there is no dropout'}" if "dropout" not in given else ""
    return f"it reads {often}{why}"


def _example(width, dropout, given):
    """Flags that change what was chosen."""
    wider = next((one for one in WIDTHS if one > width), WIDTHS[-2])
    flags = dict(n_embd=f"--n-embd {wider}", dropout=f"--dropout {0 if dropout else 0.1:g}", fit_time="--fit-time 20m")
    free = [
        flag for field, flag in flags.items() if field not in given and not (field == "fit_time" and lengths(given))
    ]
    return " ".join(free[:2]) or "--weight-decay 0.2"


def _amount(value):
    """Two digits, or a whole number."""
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def _power_of_two(value, rounded):
    """The power of two that `rounded` (round or floor) finds at a positive value; at least 1."""
    return 2 ** max(0, rounded(math.log2(value)))


def _rounded(value):
    """The nearest multiple of 32, at least 32."""
    return max(32, 32 * round(value / 32))


def _within(value, low, high):
    return min(max(value, low), high)
