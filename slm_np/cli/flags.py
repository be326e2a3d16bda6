"""Command-line flags and `--config` files made from the dataclasses of config.py.

Imports no numerics, so that `--help` is quick.
"""

import argparse
import codecs
import dataclasses
import os
import sys
import textwrap

from slm_np.config import TrainConfig, flag
from slm_np.errors import UserError, fault_in, imported, near
from slm_np.paths import expanded, is_run
from slm_np.presets import PRESETS
from slm_np.version import __version__
from slm_np.words import quoted

WIDTH = 120  # columns of --help
# Old names of fields, which flags and TOML files still accept in this release: {old: new}.
RENAMED = {
    "replay_data": "retention_data",
    "state_size": "recurrence_size",
    "channel_states": "ssm_state_size",
}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError, suggests names close to an unknown flag, and takes no abbreviations."""

    def __init__(self, description, **options):
        super().__init__(
            description="\n".join(textwrap.fill(line, WIDTH) for line in description.split("\n")),
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=WIDTH),
            **options,
        )
        self.add_argument(
            "--version", action="version", version=f"slm_np {__version__}", help="show the version and exit"
        )

    def error(self, message):
        raise UserError(message + f"; see {self.prog} --help")

    def parse(self, argv=None):
        """The parsed flags. Raises UserError for unknown ones, with the closest known flags."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            raise UserError(f"unknown argument {unknown[0]!r}; {self._hint(unknown[0])}")
        return args

    def _hint(self, word):
        known = [
            name[2:]
            for action in self._actions
            for name in action.option_strings
            if name.startswith("--") and not isinstance(action, RenamedFlag)
        ]
        if not word.startswith("-"):
            takes = next((name for name in _flags_of(word) if name in known), None)
            return (
                f"did you mean --{takes} {quoted(word)}?"
                if takes
                else f"a value follows its flag, see {self.prog} --help"
            )
        hint = near(word.split("=")[0].lstrip("-"), known, "--")
        return f"see {self.prog} --help" if hint.startswith("known") else hint


def _flags_of(word):
    """The names of flags that may take the word: a run, a preset, a file or a prompt."""
    if is_run(word):
        return "base", "model", "resume"
    if word in PRESETS:
        return ("preset",)
    if os.path.exists(word):
        return ("config" if word.endswith(".toml") else "data",)
    return ("prompt",) if " " in word else ()


def word(text):
    """The type of a flag that takes some text: an empty one is refused."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text names nothing")
    return text


def path(text):
    """The type of a flag or an argument that names a file or a directory: ~ stands for the home folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path names nothing")
    return str(expanded(text))


class RenamedFlag(argparse.Action):
    """An old name of a flag: sets the new one and prints its name on stderr."""

    def __call__(self, parser, namespace, values, option_string=None):
        print_renamed(option_string, flag(self.dest))
        before = getattr(namespace, self.dest, []) if isinstance(values, list) else None
        setattr(namespace, self.dest, values if before is None else before + values)


def print_renamed(old, new):
    """Print on stderr that a setting has a new name."""
    print(f"slm_np: {old} is now {new}", file=sys.stderr)


def add_settings(parser, kind, title, aliases=None, defaults=None):
    """Add a group of flags for the fields of the dataclass `kind`. Flags that are not given are absent from the result.

    aliases: {field: another flag}.   defaults: {field: value} to show in the help where they differ from the class's.
    """
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
        values = dict(default=argparse.SUPPRESS, nargs="+" if field.metadata["many"] else None)
        group.add_argument(
            flag(field.name),
            *also,
            action="extend" if field.metadata["many"] else "store",  # repeated flags add up
            dest=field.name,
            metavar={int: "INT", float: "FLOAT", str: "TEXT"}[type(field.default)],
            help=text + (f" (default: {shown})" if shown != "" else ""),
            **values,
        )
        for old in (old for old, new in RENAMED.items() if new == field.name):
            group.add_argument(flag(old), dest=field.name, action=RenamedFlag, help=argparse.SUPPRESS, **values)


def add_field(group, name):
    """Add the flag of one field of `TrainConfig` to a command that does not train."""
    field = TrainConfig.__dataclass_fields__[name]
    group.add_argument(
        flag(name),
        choices=field.metadata["choices"],
        default=field.default,
        help=f"{field.metadata['help']} (default: {field.default})",
    )


def add_device(group):
    """Add the flags of a command that runs a model: on which device, and with which kernels."""
    add_field(group, "device")
    add_field(group, "kernels")


def given(args, kind):
    """{field: value} of the flags given for the dataclass `kind`, each of its field's type.

    Raises UserError for a malformed number and for an empty text.
    """
    return {
        field.name: converted(field, getattr(args, field.name))
        for field in dataclasses.fields(kind)
        if hasattr(args, field.name)
    }


def converted(field, value):
    """The text of a flag, converted to the type of its field."""
    wanted, value = type(field.default), joined(field, value)
    if value == "":
        raise UserError(f"{flag(field.name)} is empty; give it a value, or leave it out")
    if isinstance(value, wanted):
        return value
    try:
        return integer(value) if wanted is int else wanted(value)
    except ValueError:
        kind = "a whole number" if wanted is int else "a number"
        raise UserError(f"{flag(field.name)} {value!r} is not {kind}; give one such as {field.default}") from None


def joined(field, value):
    """A list of values of a field that takes several, joined by commas; any other value unchanged.

    Raises UserError if one of several values is empty, or is a path that contains a comma.
    """
    if not (field.metadata["many"] and isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return value
    if len(value) > 1 and (wrong := next((one for one in value if "," in one and os.path.exists(one)), None)):
        raise UserError(
            f"{flag(field.name)} {wrong!r} contains a comma, which separates several values; give its folder instead"
        )
    if len(value) > 1 and "" in value:
        raise UserError(f"{flag(field.name)} has an empty value; leave it out")
    return ",".join(value)


def integer(text):
    """The integer that a text spells, as 1000, 1_000, 1e3 or 1000.0. Raises ValueError if it spells none."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer() or abs(number) > 2**53:
            raise ValueError(f"{text!r} is not a whole number") from None
        return int(number)


def whole_number(text, name, low):
    """The integer that `text` spells. Raises UserError, naming the flag `name`, if it is none or below `low`."""
    try:
        value = integer(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise UserError(f"{name} {text!r} must be a whole number of at least {low}")
    return value


def read_toml(path, kinds):
    """{field: value} of a TOML file.

    Its keys are the names of flags, with - or _: the fields of the dataclasses `kinds`, and `preset`. Raises UserError
    for other keys, or if the file cannot be read.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = imported("tomli", f"--config {path}", "tomli")
    try:
        fields = tomllib.loads(_decoded(expanded(path).read_bytes()))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}); name a TOML file") from None
    except (ValueError, RecursionError) as error:  # also: bytes that are not UTF-8, endless digits, deep nesting
        raise UserError(
            f"--config {path} is not TOML ({fault_in(error)}); write lines such as max-iters = 1000"
        ) from None
    known = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}
    values = {}
    for key, value in fields.items():
        name = key.replace("-", "_")
        if name in RENAMED and RENAMED[name] in known:
            name = RENAMED[name]
            print_renamed(key, name.replace("_", "-" if "-" in key else "_"))
        if name == "preset" and not (isinstance(value, str) and value):
            raise UserError(f"--config {path} has preset = {value!r}; it must be the name of a preset in quotes")
        if name != "preset" and name not in known:
            if isinstance(value, dict):
                raise UserError(f"--config {path} has the section [{key}]; write its settings without a section")
            raise UserError(f"--config {path} has the unknown setting {key!r}; {near(name, ['preset', *known])}")
        if name in values:
            raise UserError(f"--config {path} has {name.replace('_', '-')} twice, with - and with _; give it once")
        if name != "preset":
            value = joined(known[name], value)
            if type(known[name].default) is int and type(value) is float and value.is_integer():
                value = int(value)  # 1e4
        values[name] = value
    return values


def _decoded(content):
    """The text of a TOML file, which is UTF-8. Editors of Windows begin it with a mark, or write UTF-16 with one."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def split(values, kind):
    """The part of {field: value} that belongs to the dataclass `kind`."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}
