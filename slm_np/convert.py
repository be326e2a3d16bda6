"""Take over another program's checkpoint as a run: `python -m slm_np.convert stories260K.bin --tokenizer tok512.bin --out-dir RUN`."""

import json
import sys
from pathlib import Path

from slm_np.cli import flags
from slm_np.errors import UserError, exit_with_sentence


def parser(prog="slm-np convert"):
    p = flags.Parser(
        prog=prog,
        description="Make a run of another program's checkpoint, which generate, chat, evaluate, info and finetune then take. "
        "Read are llama2.c's checkpoints of version 0 (.bin).",
    )
    p.add_argument("file", metavar="FILE", help="the checkpoint")
    p.add_argument(
        "--out-dir", default="", metavar="RUN", help="directory of the run to make (default: runs/NAME-OF-THE-FILE)"
    )
    p.add_argument(
        "--tokenizer",
        default="",
        metavar="TOK",
        help="its tokenizer.bin or tokenizer.json (default: tokN.bin, of N pieces, or tokenizer.bin beside the checkpoint)",
    )
    return p


def convert(file, out_dir="", tokenizer=""):
    """Make a run directory of the llama2.c checkpoint `file`; returns its path. Arguments as the command's flags.

    UserError for a file that is none, a tokenizer that does not fit, or a directory that holds a run already; nothing is left behind then.
    """
    from slm_np.config import SamplingConfig, TrainConfig
    from slm_np.formats import checkpoint, files, llama2c, run_config
    from slm_np.formats.generation_config import to_generation_config
    from slm_np.formats.run_config import RunConfig
    from slm_np.formats.runs import new_directory

    file = Path(file)
    config, tensors = llama2c.read_checkpoint(file)
    fields = tokenizer_fields(tokenizer or beside(file, config.vocab_size), config.vocab_size)
    with new_directory(out_dir, file.stem) as directory:
        if fields:
            files.write_json(directory / "tokenizer.json", fields)
        files.write_json(directory / "generation_config.json", to_generation_config(SamplingConfig()))
        checkpoint.save_best(directory, tensors, dict(step=0, val_loss="nan"))
        run_config.write_config(
            directory, RunConfig(config, TrainConfig(max_iters=0), data=dict(converted=f"llama2.c, {file.name}"))
        )
    return directory


def beside(file, vocab_size):
    """The tokenizer in the checkpoint's folder, None where there is none."""
    places = [file.with_name(name) for name in (f"tok{vocab_size}.bin", "tokenizer.bin")]
    return next((place for place in places if place.is_file()), None)


def tokenizer_fields(path, vocab_size):
    """What tokenizer.json is to hold, from llama2.c's tokenizer file or a tokenizer.json; None without a path. UserError if it does not fit."""
    from slm_np.formats import llama2c
    from slm_np.formats.files import read_json

    if path is None:
        return None
    if Path(path).suffix != ".json":
        return llama2c.tokenizer_json(llama2c.read_tokenizer(path, vocab_size))
    from tokenizers import Tokenizer

    fields = read_json(path)
    try:
        found = Tokenizer.from_str(json.dumps(fields)).get_vocab_size()
    except Exception as error:  # the library raises no type of its own
        raise UserError(
            f"--tokenizer {path} is no tokenizer.json ({error}); name the one the model was trained with"
        ) from None
    if found != vocab_size:
        raise UserError(
            f"--tokenizer {path} has {found} pieces, the model {vocab_size}; give the tokenizer it was trained with"
        )
    return fields


@exit_with_sentence
def main(argv=None):
    """The command."""
    args = parser().parse(argv)
    directory = convert(args.file, args.out_dir, args.tokenizer)
    from slm_np.cli.report import quoted
    from slm_np.formats.run_config import read_config
    from slm_np.nn.model import parameter_count

    model = read_config(directory).model
    print(
        f"{args.file}: {parameter_count(model):,} parameters, {model.n_layer} layers, vocabulary {model.vocab_size:,}",
        file=sys.stderr,
    )
    print(f"run: {directory}")
    if (directory / "tokenizer.json").exists():
        print(f'more: python -m slm_np.generate --model {quoted(directory)} --prompt "Once upon a time"')
    else:
        print("no tokenizer was given or lies beside it: the run reads and writes ids, not text")


if __name__ == "__main__":
    main()
