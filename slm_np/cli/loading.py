"""The flags of a command that loads a run, and the run they name."""

from slm_np.cli import flags
from slm_np.errors import UserError


def add_run(group):
    """Add the flags that say which run to load and how to compute with it."""
    group.add_argument(
        "--model",
        type=flags.path,
        metavar="MODEL",
        help="directory of a run or of a Hugging Face model, a .gguf file, or a name on the hub such as org/name "
        "(default: the newest run in runs/)",
    )
    group.add_argument("--threads", default="0", metavar="INT", help="threads; 0 means one per core (default: 0)")
    flags.add_device(group)


def load_run(args):
    """The `Run` that the flags of `add_run` name, on its device, with its threads and kernels.

    Raises UserError if it cannot be loaded.
    """
    threads = flags.whole_number(args.threads, "--threads", 0)
    use_kernels(args.kernels, args.device)
    from slm_np.formats.directories import newest_run
    from slm_np.formats.sources import load
    from slm_np.ops.device import device

    device(args.device).use_threads(threads)
    return load(args.model or newest_run(), args.device)


def described(run):
    """A loaded run and its weights in words. A model of another program has its origin, not a step."""
    if origin := run.config.data.get("converted"):
        return f"{run.path}, {origin}"
    return f"{run.path}, weights of step {run.step}"


def use_kernels(name, device="cpu"):
    """Choose the kernel set of this process, before a model is made. Raises UserError if it has no effect."""
    from slm_np.ops.device import CPU

    if device == "cpu":
        CPU.use_kernels(name)
    elif name != "auto":
        raise UserError(f"--kernels {name} has no effect with --device {device}; leave it out")
