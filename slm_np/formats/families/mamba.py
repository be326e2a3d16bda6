"""Mamba: blocks of RMSNorm and a Mamba mixer, without a feed-forward. Matrices are (out, in), ours (in, out)."""

from slm_np.config import ModelConfig
from slm_np.formats.families import fields as of
from slm_np.formats.families.tensor_mapping import TensorMapping, linear, norm

MODEL_TYPES = {"mamba": "MambaForCausalLM"}
PREFIX = "backbone."
ALIASES = {"backbone.embedding.weight": "backbone.embeddings.weight"}  # of the package mamba_ssm
IGNORED = r"(?!)"  # nothing
CONTEXT = 2048  # default: the length that the published models were trained with


def config_from(fields):
    """See `slm_np.formats.families`."""
    neutral = dict(hidden_act=("silu", "swish"), use_conv_bias=(True,))
    of.check_supported(fields, MODEL_TYPES["mamba"], neutral)
    width = of.whole(fields, "hidden_size")
    rank = fields.get("time_step_rank")
    channels = _expansion(fields) * width
    if fields.get("intermediate_size") not in (None, channels):
        raise of.refused("intermediate_size", fields["intermediate_size"], f"expand times hidden_size ({channels})")
    return ModelConfig(
        vocab_size=of.whole(fields, "vocab_size"),
        block_size=of.whole(fields, "max_position_embeddings", CONTEXT),
        n_layer=of.whole(fields, "num_hidden_layers"),
        n_embd=width,
        n_inner=channels,
        pattern="M",
        positions="none",
        feed_forward="none",
        norm_eps=of.real(fields, "layer_norm_epsilon", 1e-5),
        ssm_state_size=of.whole(fields, "state_size", 16),
        time_step_rank=0 if rank == "auto" else of.whole(fields, "time_step_rank", 0, low=0),
        conv_kernel=of.whole(fields, "conv_kernel", 4),
        head=of.head(fields, True),
        bias=of.truth(fields, "use_bias", False),
    )


def _expansion(fields):
    """The field expand, which transformers 4 may write as a float."""
    value = fields.get("expand")
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return of.whole(dict(expand=whole), "expand", 2)


def fits(config):
    """Whether MambaForCausalLM computes the same."""
    return (
        set(config.letters) == {"M"}
        and config.positions == "none"
        and config.norm == "rmsnorm"
        and config.feed_forward == "none"
        and config.residual
        and config.head in ("tied", "linear")
        and config.n_inner % config.n_embd == 0  # MambaConfig stores the channels as a multiple of the width
    )


def config_to(config):
    """See `slm_np.formats.families`."""
    if not fits(config):
        return None
    return dict(
        architectures=[MODEL_TYPES["mamba"]],
        model_type="mamba",
        vocab_size=config.vocab_size,
        max_position_embeddings=config.block_size,  # MambaConfig has no limit; this is for reading the file back
        hidden_size=config.n_embd,
        intermediate_size=config.n_inner,
        expand=config.n_inner // config.n_embd,
        num_hidden_layers=config.n_layer,
        state_size=config.ssm_state_size,
        time_step_rank=config.time_step_rank,
        conv_kernel=config.conv_kernel,
        layer_norm_epsilon=config.norm_eps,
        hidden_act="silu",
        use_bias=config.bias,
        use_conv_bias=True,
        residual_in_fp32=True,
        tie_word_embeddings=config.head == "tied",
    )


def mappings(config):
    """See `slm_np.formats.families`."""
    vocab, width, channels = config.vocab_size, config.n_embd, config.n_inner
    states, rank, kernel = config.ssm_state_size, config.time_step_rank, config.conv_kernel
    bias = "both" if config.bias else "neither"
    yield TensorMapping("backbone.embeddings.weight", "embedding.weight", (vocab, width))
    for i in range(config.n_layer):
        theirs, ours = f"backbone.layers.{i}.mixer", f"layers.{i}.mamba"
        yield from norm(f"backbone.layers.{i}.norm", f"layers.{i}.mixer_norm", width)
        yield from linear(f"{theirs}.in_proj", f"{ours}.in_proj", (width, 2 * channels), bias=bias)
        yield TensorMapping(f"{theirs}.conv1d.weight", f"{ours}.conv1d.weight", (channels, 1, kernel), transposed=True)
        yield TensorMapping(f"{theirs}.conv1d.bias", f"{ours}.conv1d.bias", (channels,))
        yield from linear(f"{theirs}.x_proj", f"{ours}.x_proj", (channels, rank + 2 * states), bias="neither")
        yield from linear(f"{theirs}.dt_proj", f"{ours}.dt_proj", (rank, channels))
        yield TensorMapping(f"{theirs}.A_log", f"{ours}.A_log", (channels, states), transposed=True)
        yield TensorMapping(f"{theirs}.D", f"{ours}.D", (channels,))
        yield from linear(f"{theirs}.out_proj", f"{ours}.out_proj", (channels, width), bias=bias)
    yield from norm("backbone.norm_f", "norm", width)
    if config.head == "linear":
        yield TensorMapping("lm_head.weight", "head.weight", (vocab, width))
