"""Compile kernels before they are needed, into the cache: `python -m slm_np.warmup [--preset P | --all]`."""

from slm_np.cli import flags
from slm_np.errors import UserError, command
from slm_np.presets import PRESETS, preset
from slm_np.words import counted

PRESET = "stories"


def parser():
    p = flags.Parser(
        prog="slm-np warmup",
        description="Compile the kernels that training, evaluating and generating need, for example into the image of "
        "a container. They are kept in the cache folder; training compiles what is missing.",
    )
    p.add_argument(
        "--preset", type=flags.word, metavar="NAME", help=f"for the models of this preset (default: {PRESET})"
    )
    p.add_argument("--all", action="store_true", help="for the models of all presets")
    return p


@command
def main(argv=None):
    """Exit status: 0 done, 2 bad input."""
    args = parser().parse(argv)
    if args.all and args.preset:
        raise UserError(f"--preset {args.preset} has no effect with --all; leave one of them out")
    names = list(PRESETS) if args.all else [args.preset or PRESET]
    configs = [preset(name)[0] for name in names]
    from slm_np.ops.device import CPU
    from slm_np.paths import cache_dir

    CPU.use_kernels("numba")
    compiled = CPU.prepare(("warmup", *names), lambda: call_all(configs))
    done = f"{counted(compiled, 'kernel')} compiled, the others were there" if compiled else "all kernels were there"
    print(f"{done}; {cache_dir()} holds those of {', '.join(names)}")


def call_all(configs):
    """Call the kernels of tiny models of these configurations, in every precision that `--dtype auto` may choose."""
    from slm_np.dtypes import BF16
    from slm_np.inference.decoder import decoding, sampling
    from slm_np.nn.model import Model
    from slm_np.nn.warmup import muon, training, twin_config
    from slm_np.ops.device import CPU

    for config in configs:
        for dtype in {None, BF16} if CPU.resolve_dtype("auto") == "bf16" else {None}:
            twin = Model(twin_config(config), compute_dtype=dtype)
            training(twin)
            muon(twin)
            sampling(twin)
            decoding(twin)


if __name__ == "__main__":
    main()
