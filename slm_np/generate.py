"""Continue a prompt with a trained model: `python -m slm_np.generate --model RUN --prompt TEXT`."""
import dataclasses
import sys

from slm_np import flags
from slm_np.errors import UserError, exit_with_sentence


def parser(prog="slm-np generate"):
    from slm_np.sampling import SamplingConfig
    p = flags.Parser(prog=prog, description="Continue a prompt with a trained model; the text is printed as it is made. "
                                            "Defaults of the sampling flags are the run's own.")
    group = p.add_argument_group("what")
    group.add_argument("--model", metavar="RUN", help="directory of a run (default: the newest in runs/)")
    group.add_argument("-p", "--prompt", default="", metavar="TEXT", help="text to continue; - reads it from standard input")
    group.add_argument("--max-tokens", "--max-new-tokens", "-n", default="200", metavar="INT", help="most tokens to make (default: 200)")
    group.add_argument("--num-samples", default="1", metavar="INT", help="how many texts to make (default: 1)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end where this text would appear; may be given several times")
    group.add_argument("--threads", default="0", metavar="INT", help="threads; 0 means one per core (default: 0)")
    flags.add_settings(p, SamplingConfig, "sampling", aliases={"temp": "--temperature"})
    return p


def count(text, flag, low):
    """A whole number of at least `low`. UserError otherwise."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise UserError(f"{flag} {text!r} must be a whole number of at least {low}")
    return value


@exit_with_sentence
def main(argv=None):
    """The command. Several samples are made in one batch; the first is printed as it is made, the others when it is over."""
    from slm_np.sampling import SamplingConfig
    args = parser().parse(argv)
    changes = flags.given(args, SamplingConfig)
    max_tokens, samples = count(args.max_tokens, "--max-tokens", 0), count(args.num_samples, "--num-samples", 1)
    threads = count(args.threads, "--threads", 0)
    SamplingConfig(**changes)  # refuse bad values before the model is loaded
    from slm_np.generation import generate
    from slm_np.machine import use_threads
    from slm_np.runs import load, newest_run
    use_threads(threads)
    run = load(args.model or newest_run())
    # Piped text is read as bytes: what is not UTF-8 goes through as it came.
    prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if args.prompt == "-" else args.prompt
    texts, others = generate(run.model, run.tokenizer, prompt, max_tokens, dataclasses.replace(run.sampling, **changes), args.stop, samples), []
    print(f"{run.path}, weights of step {run.step}", file=sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    print(prompt, end="", flush=True)
    for first, *rest in texts:
        print(first, end="", flush=True)
        others.append(rest)
    for text in map("".join, zip(*others)):
        print("\n" + "-" * 20 + "\n" + prompt + text, end="")
    print()


if __name__ == "__main__":
    main()
