"""GPT-NeoX (Pythia): layer norm, rotary positions in part of each head, parallel blocks.

Queries, keys and values are one matrix, laid out head by head. GPT-NeoX always has biases. For a model without them,
the file has zeros.
"""

import math

from slm_np.config import ModelConfig
from slm_np.formats.families import fields as of
from slm_np.formats.families.tensor_mapping import TensorMapping, linear, norm

MODEL_TYPES = {"gpt_neox": "GPTNeoXForCausalLM"}
PREFIX = "gpt_neox."
ALIASES = {"lm_head.weight": "embed_out.weight"}  # its name since transformers 5.15
IGNORED = r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
NAMES = {"gelu": "gelu", "gelu-tanh": "gelu_new", "silu": "silu"}  # of activations
SHARE = 0.25  # of a head's columns that is rotated, the default


def config_from(fields):
    """See `slm_np.formats.families`."""
    of.check_supported(fields, MODEL_TYPES["gpt_neox"], dict(attention_bias=(True,)))
    width = of.whole(fields, "hidden_size")
    # transformers reads no other fields of the heads for this class.
    heads = of.heads(dict(hidden_size=width, num_attention_heads=fields.get("num_attention_heads")))
    rotary, share = of.rotation(dict(fields, rope_theta=fields.get("rotary_emb_base")))
    if share is None:
        share = of.real(fields, "rotary_pct", SHARE)
    else:
        share = of.real(dict(partial_rotary_factor=share), "partial_rotary_factor")
    rotated = int(heads["head_dim"] * share)
    if share > 1 or rotated < 2 or rotated % 2:
        raise of.refused("rotary_pct", share, f"a share that rotates an even number of the {heads['head_dim']} columns")
    return ModelConfig(
        vocab_size=of.whole(fields, "vocab_size"),
        block_size=of.whole(fields, "max_position_embeddings"),
        n_layer=of.whole(fields, "num_hidden_layers"),
        n_embd=width,
        n_hidden=of.whole(fields, "intermediate_size"),
        norm="layernorm",
        norm_eps=of.real(fields, "layer_norm_eps", 1e-5),
        feed_forward=of.activation(fields, "hidden_act", "gelu"),
        parallel=of.truth(fields, "use_parallel_residual", True),
        head=of.head(fields, False),
        bias=True,
        dropout=of.dropout(fields, "attention_dropout", "hidden_dropout"),
        rotary_dim=0 if rotated == heads["head_dim"] else rotated,
        **heads,
        **rotary,
    )


def fits(config):
    """Whether GPTNeoXForCausalLM computes the same."""
    return (
        set(config.letters) == {"A"}
        and config.positions == "rotary"
        and config.norm == "layernorm"
        and config.feed_forward in NAMES
        and config.residual
        and config.head in ("tied", "linear")
        and config.n_kv_head == config.n_head
        and config.head_dim * config.n_head == config.n_embd
        and not config.qk_norm
        and of.plain_scale(config)
    )


def config_to(config):
    """See `slm_np.formats.families`."""
    if not fits(config):
        return None
    share = config.rotary_width / config.head_dim
    if int(config.head_dim * share) < config.rotary_width:  # transformers rounds down
        share = math.nextafter(share, 1)
    rotary = of.rotation_fields(config)
    rotary["rope_parameters"]["partial_rotary_factor"] = share
    return dict(
        architectures=[MODEL_TYPES["gpt_neox"]],
        model_type="gpt_neox",
        vocab_size=config.vocab_size,
        max_position_embeddings=config.block_size,
        hidden_size=config.n_embd,
        intermediate_size=config.n_hidden,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        hidden_act=NAMES[config.feed_forward],
        layer_norm_eps=config.norm_eps,
        use_parallel_residual=config.parallel,
        attention_bias=True,
        attention_dropout=config.dropout,
        hidden_dropout=config.dropout,
        initializer_range=config.init_std,
        tie_word_embeddings=config.head == "tied",
        rotary_pct=share,
        rotary_emb_base=config.rope_theta,
        rope_scaling=rotary["rope_scaling"] and rotary["rope_parameters"],
        rope_parameters=rotary["rope_parameters"],
    )


def mappings(config):
    """See `slm_np.formats.families`."""
    vocab, width, hidden = config.vocab_size, config.n_embd, config.n_hidden
    bias = "both" if config.bias else "theirs"
    yield TensorMapping("gpt_neox.embed_in.weight", "embedding.weight", (vocab, width))
    for i in range(config.n_layer):
        theirs, ours = f"gpt_neox.layers.{i}", f"layers.{i}"
        yield from norm(f"{theirs}.input_layernorm", f"{ours}.mixer_norm", width, bias)
        yield from linear(
            f"{theirs}.attention.query_key_value",
            f"{ours}.attention.qkv",
            (width, 3 * width),
            bias="both" if config.has_qkv_bias else "theirs",
            order=(config.n_head, 3, config.head_dim),
        )
        yield from linear(f"{theirs}.attention.dense", f"{ours}.attention.output", (width, width), bias=bias)
        yield from norm(f"{theirs}.post_attention_layernorm", f"{ours}.feed_forward_norm", width, bias)
        yield from linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.feed_forward.input", (width, hidden), bias=bias)
        yield from linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.feed_forward.output", (hidden, width), bias=bias)
    yield from norm("gpt_neox.final_layer_norm", "norm", width, bias)
    if config.head == "linear":
        yield TensorMapping("embed_out.weight", "head.weight", (vocab, width))
