"""Build a vocabulary from a large corpus, then train on it: `python -m slm_np.pretrain CORPUS [--preset P]`."""

from slm_np.cli import flags
from slm_np.cli.new_run import new_run_parser, start_training
from slm_np.cli.ranks import in_ranks
from slm_np.cli.resume import resume_training
from slm_np.cli.settings import settings
from slm_np.config import TrainConfig
from slm_np.errors import UserError, command
from slm_np.presets import PRESETS, follows_text

PRESET, TOKENIZER = "slim", "bpe:4096"


def parser():
    p = new_run_parser(
        "slm-np pretrain",
        "Build a vocabulary from a corpus, then train a model on it from scratch: train with other defaults.",
        PRESET,
        tokenizer=TOKENIZER,
    )
    p.add_argument(
        "corpus",
        nargs="*",
        type=flags.path,
        metavar="CORPUS",
        help="what to train on, as --data: files, folders, globs, or a name such as tinystories",
    )
    return p


@command
def main(argv=None):
    """Exit status: that of train."""
    args = parser().parse(argv)
    name, model, train = settings(args)
    if args.corpus:
        if hasattr(args, "data"):
            raise UserError(f"{args.corpus[0]!r} and --data {' '.join(args.data)} both name the corpus; give one")
        train["data"] = flags.joined(TrainConfig.__dataclass_fields__["data"], args.corpus)
    with in_ranks("slm_np.pretrain", args, argv, train):
        run(args, name, model, train)


def run(args, name, model, train):
    """Train a new run or resume one, by these settings."""
    if args.resume is not None:
        resume_training(args.resume, name, model, train)
        return
    name = name or PRESET
    if "data" not in train:
        raise UserError(
            "what to train on is missing; give files, folders, globs or a name: python -m slm_np.pretrain tinystories"
        )
    from slm_np.data.token_files import is_token_file

    sets_none = name in PRESETS and "tokenizer" not in PRESETS[name]["train"] and not follows_text(name)
    if sets_none and not is_token_file(train["data"]):
        train.setdefault("tokenizer", TOKENIZER)
    start_training(name, model, train)


if __name__ == "__main__":
    main()
