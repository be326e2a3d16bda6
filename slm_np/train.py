"""Train a model from scratch: `python -m slm_np.train [--preset P] [--data TEXT]`."""

from slm_np.cli.new_run import new_run_parser, start_training
from slm_np.cli.own_text import is_own_text
from slm_np.cli.ranks import in_ranks
from slm_np.cli.resume import resume_training
from slm_np.cli.settings import settings
from slm_np.errors import command

PRESET, OWN_TEXT = "stories", "own-text"  # of an embedded corpus or tokens, and of another text


def parser():
    return new_run_parser(
        "slm-np train",
        f"Train a small language model from scratch. Without arguments: the preset {PRESET}. With --data alone: the "
        f"preset {OWN_TEXT}, which chooses what is not given and says so.",
        PRESET,
    )


@command
def main(argv=None):
    """Exit status: 0 done, 2 bad input, 130, 143 or 129 stopped by Ctrl-C, SIGTERM or SIGHUP with the run saved."""
    args = parser().parse(argv)
    name, model, train = settings(args)
    with in_ranks("slm_np.train", args, argv, train):
        if args.resume is None:
            start_training(name or (OWN_TEXT if is_own_text(train) else PRESET), model, train)
        else:
            resume_training(args.resume, name, model, train)


if __name__ == "__main__":
    main()
