"""Check every derivative against finite differences, in float64: `python -m slm_np.gradcheck [--preset P]`."""

from slm_np.cli import flags
from slm_np.cli.loading import use_kernels
from slm_np.errors import command
from slm_np.presets import PRESETS, preset


def parser():
    p = flags.Parser(
        prog="slm-np gradcheck",
        description="Check every hand-written derivative against finite differences, in float64.",
    )
    p.add_argument(
        "--preset",
        type=flags.word,
        help="check the whole model of this preset, at a small size, tensor by tensor (default: every op and preset)",
    )
    flags.add_field(p, "kernels")
    return p


@command(prints_result=True)
def main(argv=None):
    """Print a line per op and preset, or per tensor of one preset.

    Exit status: 0 all derivatives are right, 1 one is wrong, 2 bad input.
    """
    args = parser().parse(argv)
    config = preset(args.preset)[0] if args.preset else None
    use_kernels(args.kernels)
    from slm_np.nn.gradient_check import TOLERANCE
    from slm_np.ops.device import CPU

    def errors():
        return tensor_errors(config) if config else all_errors()

    CPU.prepare(("gradcheck", config), lambda: list(errors()))
    worst = 0.0
    print(f"{'':<48} error     (tolerance {TOLERANCE:.0e})")
    for name, error in errors():
        worst = max(worst, error)
        print(f"{name:<48} {error:9.1e} {'ok' if error <= TOLERANCE else 'WRONG'}", flush=True)
    raise SystemExit(0 if worst <= TOLERANCE else 1)


def tensor_errors(config):
    """(name, error) of each tensor of a model."""
    from slm_np.nn.gradient_check import model_error, shrunk

    return [(name or "all tensors", error) for name, error in model_error(shrunk(config)).items()]


def all_errors():
    """Yield (name, error) of each op, and of the model of each preset."""
    from slm_np.nn.gradient_cases import op_cases
    from slm_np.nn.gradient_check import model_error, shrunk

    for case in op_cases():
        yield case.name, case.error()
    for name in PRESETS:
        yield f"model of {name}", max(model_error(shrunk(preset(name)[0])).values())


if __name__ == "__main__":
    main()
