"""Show what a run is and how it was trained, one or several side by side: `python -m slm_np.info RUN [RUN ...]`."""

import shutil
from pathlib import Path

from slm_np.cli import flags
from slm_np.cli.chart import plain
from slm_np.cli.info_files import describe_path
from slm_np.cli.info_models import describe_foreign
from slm_np.cli.summary import compare, describe_run, summary
from slm_np.errors import UserError, command
from slm_np.paths import is_run


def parser():
    p = flags.Parser(
        prog="slm-np info",
        description="Show what a run is, how it was trained and its losses. Several runs are compared in a table. "
        "Describes a model of another program, prepared tokens, a .safetensors file, a tokenizer.json and a text, too.",
    )
    p.add_argument(
        "paths",
        nargs="*",
        type=flags.path,
        metavar="MODEL",
        help="runs, or any other models and files (default: the newest run in runs/)",
    )
    return p


@command(prints_result=True)
def main(argv=None):
    """Exit status: 0 done, 2 bad input."""
    args = parser().parse(argv)
    from slm_np.formats.directories import newest_run
    from slm_np.formats.sources import format_of, is_hub_name

    paths = [Path(path) for path in args.paths] or [newest_run()]
    width, ascii = shutil.get_terminal_size((100, 24)).columns, plain()
    runs, parts, errors = [], [], []
    for path in paths:
        try:
            if is_run(path):
                runs.append(summary(path))
            elif is_hub_name(path) or format_of(path):
                parts.append(describe_foreign(path))
            else:
                parts.append(describe_path(path))
        except UserError as error:  # the others are shown nevertheless
            errors.append(str(error))
    parts += [compare(runs, ascii)] if len(runs) > 1 else [describe_run(run, width, ascii) for run in runs]
    if parts:
        print("\n\n".join("\n".join(lines) for lines in parts))
    if errors:
        raise UserError("; ".join(errors))


if __name__ == "__main__":
    main()
