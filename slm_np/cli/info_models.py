"""What `info` says about a model of another program."""

from collections import Counter

from slm_np.cli.exports import exports
from slm_np.cli.summary import describe_model, tokenizer_in_words
from slm_np.words import counted, quoted


def describe_foreign(path):
    """The lines about a model of another program, which `sources.open_model` reads. Its weights are not read."""
    from slm_np.formats import sources
    from slm_np.nn.model import parameter_count

    parts = sources.open_model(path)
    config, used = parts.config, sources.usable(parts.config)
    shorter = f", used with {used.block_size:,} here" if used.block_size < config.block_size else ""
    tokenizer = tokenizer_in_words(parts.tokenizer.to_json()) if parts.tokenizer else "none: it reads and writes ids"
    template = "how chat writes a conversation" if parts.template else "none: chat continues each message"
    lines = [
        f"{path}: a model, {parts.origin}",
        f"  model      {counted(parameter_count(config), 'parameter')}: {describe_model(config)}",
        f"  weights    {', '.join(stored_types(sources.located(path)))}",
        f"  context    {counted(config.block_size, 'token')}{shorter}",
        f"  tokenizer  {tokenizer}",
        f"  template   {template}",
    ]
    kind = parts.tokenizer and parts.tokenizer.to_json()["model"]["type"]
    return [*lines, *exports(config, kind), f"  use        python -m slm_np.generate --model {quoted(path)}"]


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

            from slm_np.formats.gguf.header import read_header

            counts = Counter()
            for tensor in read_header(path).tensors.values():
                counts[tensor.kind.name] += prod(tensor.shape)
        case _:
            counts = Counter(F32=1)
    return [kind for kind, _ in counts.most_common()]
