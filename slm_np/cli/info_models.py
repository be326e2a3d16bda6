"""What `info` says about a model of another program, and which programs can run a model of ours."""

from collections import Counter

from slm_np.cli.summary import describe_model, tokenizer_in_words
from slm_np.errors import UserError
from slm_np.words import counted, quoted


def describe_foreign(path):
    """The lines about a model of another program, which `sources.open_model` reads. Its weights are not read."""
    from slm_np.formats import sources
    from slm_np.nn.model import parameter_count

    parts = sources.open_model(path)
    config, used = parts.config, sources.usable(parts.config)
    shorter = f", used with {used.block_size:,} here" if used.block_size < config.block_size else ""
    tokenizer = tokenizer_in_words(parts.tokenizer.to_json()) if parts.tokenizer else "none: it reads and writes ids"
    template = "one" if parts.template else "none: chat continues each message"
    lines = [
        f"{path}: a model, {parts.origin}",
        f"  model      {counted(parameter_count(config), 'parameter')}: {describe_model(config)}",
        f"  weights    {', '.join(stored_types(sources.located(path)))}",
        f"  context    {counted(config.block_size, 'token')}{shorter}",
        f"  tokenizer  {tokenizer}",
        f"  template   {template}",
    ]
    return [*lines, *exports(config), f"  use        python -m slm_np.generate --model {quoted(path)}"]


def stored_types(path):
    """The types of the tensors in the files of a model, those of the most elements first."""
    from slm_np.formats import sources

    match sources.format_of(path):
        case sources.HUGGING_FACE:
            from slm_np.formats.weight_files import open_weights

            counts = Counter()
            for name, file in open_weights(path).items():
                counts[file.kind(name)] += file.size(name)
        case sources.GGUF:
            from math import prod

            from slm_np.formats.gguf_header import read_header

            counts = Counter()
            for tensor in read_header(path).tensors.values():
                counts[tensor.kind.name] += prod(tensor.shape)
        case _:
            counts = Counter(F32=1)
    return [kind for kind, _ in counts.most_common()]


def exports(config):
    """The lines about the programs for which `convert` can write a model with this ModelConfig, or why it cannot."""
    from slm_np.formats.families import family_of
    from slm_np.formats.gguf_architecture import architecture_of

    family = family_of(config)
    if family is None:
        theirs = f"none: no class of transformers has {unusual(config)}"
    else:
        theirs = family.MODEL_TYPES[family.config_to(config)["model_type"]]
    try:
        gguf = architecture_of(config)
    except UserError as error:
        gguf = f"none: {str(error).partition(', so ')[0]}"
    return [f"  exports    transformers: {theirs}", f"             GGUF: {gguf}"]


def unusual(config):
    """The setting because of which no class of transformers computes a model, as a flag."""
    letters = set(config.letters)
    found = {
        f"--pattern {config.pattern}": "S" in letters or "M" in letters and len(letters) > 1,
        f"--positions {config.positions}": config.positions == "sinusoidal",
        f"--norm {config.norm}": config.norm == "none",
        f"--head {config.head}": config.head not in ("tied", "linear"),
        "--no-residual": not config.residual,
        f"--feed-forward {config.feed_forward}": config.has_attention and config.feed_forward == "none",
    }
    together = f"--norm {config.norm}, --positions {config.positions} and --feed-forward {config.feed_forward} together"
    return next((setting for setting, lacking in found.items() if lacking), together)
