"""The flags of a training command for several ranks, and the start of these."""

import contextlib
import sys

from slm_np.errors import UserError


def add_ranks(group):
    """Add --ranks and --restarts."""
    group.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        default=0,
        help="train with N processes on this machine, which MPI connects (default: one process)",
    )
    group.add_argument(
        "--restarts",
        type=int,
        metavar="K",
        default=0,
        help="with --ranks: if a rank dies or hangs, resume from the last checkpoint with half of them, up to K times "
        "(default: 0)",
    )


@contextlib.contextmanager
def in_ranks(module, args, argv, train):
    """Around a training command: with --ranks, the ranks run it, and this process ends with their exit status.

    module: its name.   args: its parsed flags, from the words `argv`, or those of the command line if that is None
    train: {field: value} of TrainConfig that the user gave; a new run of several ranks gets its virtual ranks here
    """
    from slm_np.ranks.current import world
    from slm_np.ranks.world import ALONE

    n, ranks, words = args.ranks, world(), sys.argv[1:] if argv is None else list(argv)
    with ranks.ending():
        if n < 0 or args.restarts < 0:
            raise UserError("--ranks and --restarts count processes and restarts; they must be at least 0")
        if args.restarts and n < 2:
            raise UserError(f"--restarts {args.restarts} has no effect without --ranks; leave it out")
        if ranks is not ALONE and n not in (0, ranks.size):
            raise UserError(f"--ranks {n} differs from the {ranks.size} that MPI started; leave it out")
        n = n or ranks.size
        if n > 1 and args.resume is None and not train.get("sync_every") and not train.get("virtual_ranks"):
            if n & (n - 1):
                raise UserError(f"--ranks {n} is not a power of two; choose 2, 4, 8, ...")
            train["virtual_ranks"] = n  # the default of a new run
        if ranks is ALONE and n > 1:
            from slm_np.ranks.start import start

            raise SystemExit(start(module, without(words, "--ranks", "--restarts"), n, args.restarts))
        yield


def without(words, *names):
    """The words of a command line without these flags and their values."""
    kept, skip = [], False
    for word in words:
        if not skip and word.split("=")[0] not in names:
            kept.append(word)
        skip = not skip and word in names
    return kept
