"""Command-line flags and `--config` files made from the settings' dataclasses. Imports no numerics: `--help` must be quick."""

import argparse
import dataclasses
import sys
from pathlib import Path

from slm_np.config import DEVICES
from slm_np.errors import UserError, near


class Parser(argparse.ArgumentParser):
    """argparse in the house's manner: one sentence and exit status 2, near names for an unknown flag, no abbreviations."""

    def __init__(self, **options):
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=120),
            **options,
        )

    def error(self, message):
        raise UserError(message + f"; see {self.prog} --help")

    def parse(self, argv=None):
        """Parsed flags; UserError names the flags nearest to an unknown one."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            word, known = (
                unknown[0].split("=")[0],
                [name[2:] for action in self._actions for name in action.option_strings if name.startswith("--")],
            )
            hint = near(word.lstrip("-"), known, "--") if word.startswith("-") else "values follow a flag"
            raise UserError(
                f"unknown argument {unknown[0]!r}; {hint if not hint.startswith('known') else f'see {self.prog} --help'}"
            )
        return args


def flag(name):
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def add_settings(parser, kind, title, aliases=None, defaults=None):
    """A group of flags for the fields of the dataclass `kind`; those not given are absent from the result. `defaults` are shown in the help."""
    group = parser.add_argument_group(title)
    for field in dataclasses.fields(kind):
        shown, text = (defaults or {}).get(field.name, field.default), field.metadata["help"].replace("%", "%%")
        if isinstance(field.default, bool):
            group.add_argument(
                flag(field.name),
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=f"{text} (default: {'on' if shown else 'off'})",
            )
            continue
        if field.metadata["choices"]:
            text += f": {', '.join(field.metadata['choices'])}"
        also = [aliases[field.name]] if aliases and field.name in aliases else []
        group.add_argument(
            flag(field.name),
            *also,
            dest=field.name,
            default=argparse.SUPPRESS,
            nargs="+" if field.metadata["many"] else None,
            metavar={int: "INT", float: "FLOAT", str: "TEXT"}[type(field.default)],
            help=text + (f" (default: {shown})" if shown != "" else ""),
        )


def add_device(group):
    """The flag of a command that runs a model."""
    group.add_argument(
        "--device", choices=DEVICES, default="cpu", help="where to run; cuda is an NVIDIA GPU (default: cpu)"
    )


def given(args, kind):
    """{field: value} of the flags that were given for the dataclass `kind`, as the field's type. UserError for a malformed number."""
    return {
        field.name: converted(field, getattr(args, field.name))
        for field in dataclasses.fields(kind)
        if hasattr(args, field.name)
    }


def converted(field, value):
    """A flag's text as the type of its field."""
    wanted, value = type(field.default), joined(field, value)
    if isinstance(value, wanted):
        return value
    try:
        return wanted(value)
    except ValueError:
        raise UserError(
            f"{flag(field.name)} {value!r} is not {'a whole number' if wanted is int else 'a number'}; give one such as {field.default}"
        ) from None


def joined(field, value):
    """Several values of a field that takes many as one text with commas between; anything else as it is. UserError if one holds a comma."""
    if not (field.metadata["many"] and isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return value
    if len(value) > 1 and any("," in one for one in value):
        raise UserError(
            f"{flag(field.name)} {next(one for one in value if ',' in one)!r} has a comma, which stands between several; give its folder instead"
        )
    return ",".join(value)


def read_toml(path, kinds):
    """{field: value} of a TOML file whose keys are flags' names, with - or _: fields of the dataclasses `kinds`, and `preset`. UserError for others."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(Path(path), "rb") as file:
            fields = tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}); name a TOML file") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # besides what TOML forbids: bytes that are not UTF-8, endless digits, deep nesting
        raise UserError(f"--config {path} is not TOML ({error}); write lines such as max-iters = 1000") from None
    known = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}
    values = {}
    for key, value in fields.items():
        name = key.replace("-", "_")
        if name == "preset" and not isinstance(value, str):
            raise UserError(f"--config {path} has preset = {value!r}; it must be the name of a preset in quotes")
        if name != "preset" and name not in known:
            raise UserError(f"--config {path} has the unknown setting {key!r}; {near(name, ['preset', *known])}")
        values[name] = value if name == "preset" else joined(known[name], value)
    return values


def split(values, kind):
    """The part of {field: value} that belongs to the dataclass `kind`."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}
