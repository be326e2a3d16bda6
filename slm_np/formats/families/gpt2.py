"""GPT-2: layer norm, learned positions, one matrix for queries, keys and values. Matrices are (in, out), as ours.

GPT-2 always has biases. For a model without them, the file has zeros.
"""

from slm_np.config import ModelConfig
from slm_np.formats.families import fields as of
from slm_np.formats.families.tensor_mapping import TensorMapping, linear, norm

MODEL_TYPES = {"gpt2": "GPT2LMHeadModel"}
PREFIX = "transformer."
ALIASES = {}
IGNORED = r"h\.\d+\.attn\.(bias|masked_bias)"  # buffers of the causal mask
NAMES = {"gelu-tanh": "gelu_new", "gelu": "gelu", "silu": "silu"}  # of activations
NEUTRAL = dict(scale_attn_by_inverse_layer_idx=(False,))


def config_from(fields):
    """See `slm_np.formats.families`."""
    of.check_supported(fields, MODEL_TYPES["gpt2"], NEUTRAL)
    width = of.whole(fields, "n_embd", 768)
    heads = dict(n_embd=width, n_head=of.whole(fields, "n_head", 12))
    return ModelConfig(
        vocab_size=of.whole(fields, "vocab_size", 50257),
        block_size=of.whole(fields, "n_positions", 1024),
        n_layer=of.whole(fields, "n_layer", 12),
        n_embd=width,
        n_hidden=of.whole(fields, "n_inner", 4 * width),
        score_scale=0.0 if of.truth(fields, "scale_attn_weights", True) else 1.0,
        positions="learned",
        norm="layernorm",
        norm_eps=of.real(fields, "layer_norm_epsilon", 1e-5),
        feed_forward=of.activation(fields, "activation_function", "gelu_new"),
        head=of.head(fields, True),
        bias=True,
        dropout=of.dropout(fields, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        **of.heads(heads, width_name="n_embd", heads_name="n_head"),
    )


def fits(config):
    """Whether GPT2LMHeadModel computes the same."""
    return (
        set(config.letters) == {"A"}
        and config.positions == "learned"
        and config.norm == "layernorm"
        and config.feed_forward in NAMES
        and config.residual
        and not config.parallel
        and config.head in ("tied", "linear")
        and config.n_kv_head == config.n_head
        and config.head_dim * config.n_head == config.n_embd
        and not config.qk_norm
        and (of.plain_scale(config) or config.score_scale == 1)
    )


def config_to(config):
    """See `slm_np.formats.families`."""
    if not fits(config):
        return None
    return dict(
        architectures=[MODEL_TYPES["gpt2"]],
        model_type="gpt2",
        vocab_size=config.vocab_size,
        n_positions=config.block_size,
        n_ctx=config.block_size,  # for llama.cpp
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_inner=config.n_hidden,
        activation_function=NAMES[config.feed_forward],
        layer_norm_epsilon=config.norm_eps,
        scale_attn_weights=of.plain_scale(config),
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
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
        yield from norm(f"{theirs}.ln_1", f"{ours}.mixer_norm", width, bias)
        for name, our_name, shape, has_bias in (
            ("attn.c_attn", "attention.qkv", (width, 3 * width), "both" if config.has_qkv_bias else "theirs"),
            ("attn.c_proj", "attention.output", (width, width), bias),
        ):
            yield from linear(f"{theirs}.{name}", f"{ours}.{our_name}", shape, bias=has_bias, transposed=False)
        yield from norm(f"{theirs}.ln_2", f"{ours}.feed_forward_norm", width, bias)
        for name, our_name, shape in (
            ("mlp.c_fc", "feed_forward.input", (width, hidden)),
            ("mlp.c_proj", "feed_forward.output", (hidden, width)),
        ):
            yield from linear(f"{theirs}.{name}", f"{ours}.{our_name}", shape, bias=bias, transposed=False)
    yield from norm("transformer.ln_f", "norm", width, bias)
    if config.head == "linear":
        yield TensorMapping("lm_head.weight", "head.weight", (vocab, width))
