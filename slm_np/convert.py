"""Convert a llama2.c checkpoint to a run: `python -m slm_np.convert model.bin [--tokenizer TOK] [--out-dir RUN]`."""

import sys

from slm_np.cli import flags
from slm_np.errors import command
from slm_np.words import counted, quoted


def parser():
    p = flags.Parser(
        prog="slm-np convert",
        description="Make a run of another program's checkpoint, for generate, chat, evaluate, info and finetune. "
        "Supported: llama2.c checkpoints of version 0 (.bin).",
    )
    p.add_argument("file", type=flags.path, metavar="FILE", help="the checkpoint")
    p.add_argument(
        "--out-dir",
        type=flags.path,
        metavar="RUN",
        help="directory of the run to make (default: runs/NAME-OF-THE-FILE)",
    )
    p.add_argument(
        "--tokenizer",
        type=flags.path,
        metavar="TOK",
        help="its tokenizer.bin or tokenizer.json (default: beside the checkpoint, tokN.bin for a vocabulary of N, "
        "or tokenizer.bin)",
    )
    return p


@command
def main(argv=None):
    """Exit status: 0 done, 2 bad input."""
    args = parser().parse(argv)
    # Imported here, so that --help does not wait for numerics.
    from slm_np.formats.conversion import convert
    from slm_np.formats.run_config import read_config
    from slm_np.nn.model import parameter_count

    directory = convert(args.file, args.out_dir or "", args.tokenizer or "")
    model = read_config(directory).model
    sizes = counted(parameter_count(model), "parameter"), counted(model.n_layer, "layer")
    print(f"{args.file}: {', '.join(sizes)}, vocabulary {model.vocab_size:,}", file=sys.stderr)
    print(f"run: {directory}")
    if (directory / "tokenizer.json").exists():
        print(f'more: python -m slm_np.generate --model {quoted(directory)} --prompt "Once upon a time"')
    else:
        print(
            "no tokenizer: none was given and none is beside the checkpoint, so the run reads and writes ids, not text"
        )


if __name__ == "__main__":
    main()
