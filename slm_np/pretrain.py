"""Build a vocabulary from a large corpus, then train on it: `python -m slm_np.pretrain CORPUS [--preset P]`."""

from slm_np import train
from slm_np.cli import flags
from slm_np.config import TrainConfig
from slm_np.errors import UserError, exit_with_sentence
from slm_np.presets import PRESETS

PRESET, TOKENIZER = "slim", "bpe:4096"


def parser():
    p = train.parser(
        "slm-np pretrain",
        "Build a vocabulary from a corpus, then train a model on it from scratch: as train, with other defaults.",
        PRESET,
        tokenizer=TOKENIZER,
    )
    p.add_argument(
        "corpus",
        nargs="*",
        metavar="CORPUS",
        help="what to train on, as --data: files, folders, globs, or a name such as tinystories",
    )
    return p


@exit_with_sentence
def main(argv=None):
    """The command; exit status as of train."""
    args = parser().parse(argv)
    name, model, given = train.settings(args)
    if args.corpus:
        if hasattr(args, "data"):
            raise UserError(f"{args.corpus[0]!r} and --data {' '.join(args.data)} both say what to train on; give one")
        given["data"] = flags.joined(TrainConfig.__dataclass_fields__["data"], args.corpus)
    if args.resume is not None:
        train.go_on(args.resume, name, model, given)
        return
    name = name or PRESET
    if "data" not in given:
        raise UserError(
            "what to train on is missing; give files, folders, globs or a name, such as: python -m slm_np.pretrain tinystories"
        )
    if name in PRESETS and "tokenizer" not in PRESETS[name]["train"]:
        given.setdefault("tokenizer", TOKENIZER)
    train.begin(name, model, given)


if __name__ == "__main__":
    main()
