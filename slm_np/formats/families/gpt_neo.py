"""GPT-Neo (TinyStories): local attention in some layers, unscaled scores, no biases of queries, keys and values.

Layer norm and learned positions as in GPT-2, but matrices are (out, in). The other layers always have biases. For a
model without them, the file has zeros.
"""

from slm_np.config import ModelConfig
from slm_np.formats.families import fields as of
from slm_np.formats.families.gpt2 import NAMES
from slm_np.formats.families.tensor_mapping import TensorMapping, linear, norm, qkv_columns

MODEL_TYPES = {"gpt_neo": "GPTNeoForCausalLM"}
PREFIX = "transformer."
ALIASES = {}
IGNORED = r"h\.\d+\.attn\.attention\.(bias|masked_bias)"  # buffers of the causal mask
LETTERS = {"global": "A", "local": "L"}


def config_from(fields):
    """See `slm_np.formats.families`."""
    of.check_supported(fields, MODEL_TYPES["gpt_neo"], {})
    width, layers = of.whole(fields, "hidden_size"), of.whole(fields, "num_layers")
    context, window = of.whole(fields, "max_position_embeddings", 2048), of.whole(fields, "window_size", 256)
    letters = _letters(fields, layers)
    if window >= context:  # a window as long as the context has no effect
        letters = "A" * layers
    return ModelConfig(
        vocab_size=of.whole(fields, "vocab_size", 50257),
        block_size=context,
        n_layer=layers,
        n_embd=width,
        n_hidden=of.whole(fields, "intermediate_size", 4 * width),
        pattern=of.shortest(letters),
        score_scale=1.0,
        positions="learned",
        norm="layernorm",
        norm_eps=of.real(fields, "layer_norm_epsilon", 1e-5),
        feed_forward=of.activation(fields, "activation_function", "gelu_new"),
        head=of.head(fields, True),
        bias=True,
        qkv_bias="off",
        dropout=of.dropout(fields, "resid_dropout", "embed_dropout", "attention_dropout"),
        **of.heads(dict(hidden_size=width, num_heads=fields.get("num_heads")), heads_name="num_heads"),
        **(dict(window=window) if "L" in letters else {}),
    )


def _letters(fields, layers):
    """The letter of each layer's mixer, from attention_types such as [[["global", "local"], 12]]."""
    given = fields.get("attention_types") or [[["global", "local"], 12]]
    try:
        blocks = ["".join(LETTERS[kind] for kind in kinds) * min(times, layers) for kinds, times in given]
    except (TypeError, ValueError, KeyError):
        raise of.refused("attention_types", given, "lists such as [[['global', 'local'], 6]]") from None
    if sum(map(len, blocks)) != layers:
        raise of.refused("attention_types", given, f"lists for the {layers} layers of num_layers")
    return "".join(blocks)


def fits(config):
    """Whether GPTNeoForCausalLM computes the same."""
    return (
        config.has_attention
        and set(config.letters) <= set("AL")
        and config.positions == "learned"
        and config.norm == "layernorm"
        and config.feed_forward in NAMES
        and config.residual
        and not config.parallel
        and config.head in ("tied", "linear")
        and config.n_kv_head == config.n_head
        and config.head_dim * config.n_head == config.n_embd
        and not config.has_qkv_bias
        and not config.qk_norm
        and config.score_scale == 1
    )


def config_to(config):
    """See `slm_np.formats.families`."""
    if not fits(config):
        return None
    kinds = {letter: kind for kind, letter in LETTERS.items()}
    return dict(
        architectures=[MODEL_TYPES["gpt_neo"]],
        model_type="gpt_neo",
        vocab_size=config.vocab_size,
        max_position_embeddings=config.block_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_hidden,
        num_layers=config.n_layer,
        num_heads=config.n_head,
        attention_types=[[[kinds[letter] for letter in config.letters], 1]],
        window_size=config.window,
        activation_function=NAMES[config.feed_forward],
        layer_norm_epsilon=config.norm_eps,
        resid_dropout=config.dropout,
        embed_dropout=config.dropout,
        attention_dropout=config.dropout,
        initializer_range=config.init_std,
        tie_word_embeddings=config.head == "tied",
    )


def mappings(config):
    """See `slm_np.formats.families`."""
    vocab, width, hidden = config.vocab_size, config.n_embd, config.n_hidden
    bias = "both" if config.bias else "theirs"
    yield TensorMapping("transformer.wte.weight", "embedding.weight", (vocab, width))
    yield TensorMapping("transformer.wpe.weight", "positions.weight", (config.block_size, width))
    for i in range(config.n_layer):
        theirs, ours = f"transformer.h.{i}", f"layers.{i}"
        attention = f"{theirs}.attn.attention"
        yield from norm(f"{theirs}.ln_1", f"{ours}.mixer_norm", width, bias)
        for part, columns in qkv_columns(config).items():
            yield from linear(
                f"{attention}.{part}_proj",
                f"{ours}.attention.qkv",
                (width, width),
                bias="neither",
                columns=columns,
                part=part,
            )
        yield from linear(f"{attention}.out_proj", f"{ours}.attention.output", (width, width), bias=bias)
        yield from norm(f"{theirs}.ln_2", f"{ours}.feed_forward_norm", width, bias)
        yield from linear(f"{theirs}.mlp.c_fc", f"{ours}.feed_forward.input", (width, hidden), bias=bias)
        yield from linear(f"{theirs}.mlp.c_proj", f"{ours}.feed_forward.output", (hidden, width), bias=bias)
    yield from norm("transformer.ln_f", "norm", width, bias)
    if config.head == "linear":
        yield TensorMapping("lm_head.weight", "head.weight", (vocab, width))
