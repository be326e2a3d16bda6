"""Convert a model of any format to a directory or a GGUF file: `python -m slm_np.convert SOURCE [TARGET]`."""

import re
import sys

from slm_np.cli import flags
from slm_np.config import FILE_DTYPES
from slm_np.errors import UserError, command
from slm_np.paths import is_run
from slm_np.words import counted, quoted


def parser():
    p = flags.Parser(
        prog="slm-np convert",
        description="Write a model in another format: a run, a Hugging Face directory, a GGUF file, a checkpoint of "
        "llama2.c, a LoRA adapter or a name on the hub, as a Hugging Face directory, which is a run as well, or as a "
        "GGUF file for llama.cpp and ollama. Both formats are told by what is there and by the name.",
    )
    p.add_argument("source", type=flags.path, metavar="SOURCE", help="the model to read")
    p.add_argument(
        "target",
        nargs="?",
        type=flags.path,
        metavar="TARGET",
        help="what to write: a file that ends in .gguf, else a directory (default: runs/NAME-OF-THE-SOURCE)",
    )
    p.add_argument("--out-dir", type=flags.path, metavar="TARGET", help="another way to give TARGET")
    p.add_argument(
        "--dtype",
        choices=FILE_DTYPES,
        default="f32",
        help="type of the weights; q8_0, 8 bits, is for GGUF files (default: f32)",
    )
    p.add_argument(
        "--tokenizer",
        type=flags.path,
        metavar="TOK",
        help="a tokenizer.json or a tokenizer.bin of llama2.c (default: the model's own; for llama2.c beside the "
        "checkpoint, tokN.bin for a vocabulary of N, or tokenizer.bin)",
    )
    p.add_argument(
        "--merge", action="store_true", help="write the model that a LoRA adapter makes of its base, not the adapter"
    )
    return p


@command
def main(argv=None):
    """Exit status: 0 done, 2 bad input."""
    args = parser().parse(argv)
    if args.target and args.out_dir:
        raise UserError(f"TARGET {args.target} and --out-dir {args.out_dir} both say what to write; give one")
    # Imported here, so that --help does not wait for numerics.
    from slm_np.formats.conversion import convert
    from slm_np.nn.model import parameter_count

    made = convert(args.source, args.target or args.out_dir or "", args.tokenizer or "", args.dtype, args.merge)
    config = made.parts.config
    sizes = counted(parameter_count(config), "parameter"), counted(config.n_layer, "layer")
    what = f"an adapter to {made.adapter.base} with " if made.adapter else ""
    print(f"{args.source}: {what}{', '.join(sizes)}, vocabulary {config.vocab_size:,}", file=sys.stderr)
    print("\n".join(next_steps(made)))


def next_steps(made):
    """The lines about what was written, a `Converted`, and what can be done with it."""
    path, name = made.path, quoted(made.path)
    if made.adapter:
        more = f"more: python -m slm_np.generate --model {name}"
        if path.suffix.lower() == ".gguf":
            more = f"llama.cpp: llama-cli -m BASE.gguf --lora {name}"
        return [f"adapter: {path}; --merge writes the model that it makes of its base", more]
    if path.suffix.lower() == ".gguf":
        modelfile = quoted(path.with_suffix(".Modelfile"))
        model = re.sub("[^a-z0-9._-]+", "-", path.stem.lower()).strip("._-") or "model"  # as ollama allows
        return [
            f"model: {path}",
            f"llama.cpp: llama-cli -m {name}",
            f"ollama: ollama create {model} -f {modelfile} && ollama run {model}",
        ]
    if made.parts.tokenizer is None:
        more = "no tokenizer: none was given and none is beside the model, so the model reads and writes ids, not text"
    elif made.parts.template is None:
        more = f'more: python -m slm_np.generate --model {name} --prompt "Once upon a time"'
    else:
        more = f"more: python -m slm_np.chat --model {name}"
    return [f"{'run' if is_run(path) else 'model'}: {path}", more]


if __name__ == "__main__":
    main()
