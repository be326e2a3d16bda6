"""Where the files lie that a run names: its relative paths start at the directory in which the run was started.

run.json keeps that directory, relative to the run and absolute. So the files are found wherever a command starts,
and also after the run was moved together with them.
"""

import contextlib
import glob
import os
from pathlib import Path

from slm_np.config import flag
from slm_np.data.corpus import NAMES
from slm_np.errors import UserError

WORDS = dict(data="data", val_data="validation data", retention_data="retention data", tokenizer="tokenizer")


def started_here(run_dir):
    """What run.json keeps of a run that starts in the current directory: {relative to the run, absolute}."""
    with contextlib.suppress(OSError, ValueError):  # no current directory; on Windows another drive
        here = os.getcwd()
        return dict(relative=Path(os.path.relpath(here, run_dir)).as_posix(), absolute=here)
    return {}


def directories(run_dir, config):
    """The directories at which relative paths of the run in `run_dir` may start, the most likely first.

    A run of version 0.3 or older does not say where it was started: that is likely to be here, or beside the run.
    """
    started = config.data.get("directory") or {}
    found = [Path(run_dir) / started["relative"]] if "relative" in started else []
    found += [Path(started["absolute"])] if "absolute" in started else []
    found = [*found, Path(), Path(run_dir).parent]
    return list({os.path.abspath(path): path for path in found}.values())


def located(run_dir, config, field, remedy=""):
    """The setting `field` of a run as it must be written in the current directory, to find the same files.

    config: RunConfig.   field: data, val_data, retention_data or tokenizer.   remedy: what helps if they are lost, by
    default the flag of the field
    Raises UserError if the files do not exist.
    """
    text = getattr(config.train, field)
    prefix = "file:" if field == "tokenizer" else ""
    if not text.startswith(prefix) or not text.removeprefix(prefix):
        return text
    text, places = text.removeprefix(prefix), directories(run_dir, config)
    found = written_here(text, places, several=field != "tokenizer")
    if found is None:
        looked = "" if os.path.isabs(text) else f" in {' or '.join(map(os.path.abspath, places))}"
        remedy = remedy or f"say with {flag(field)} where it is"
        raise UserError(f"cannot find the {WORDS[field]} of {run_dir}, {text},{looked}; put it back, or {remedy}")
    return prefix + found


def written_here(text, places, several=True):
    """Paths, separated by commas if `several`, as they must be written in the current directory. None if not found.

    places: directories at which they may start. The first that has all of them counts. Names of corpora stay.
    """
    is_name = text.strip() in NAMES
    for place in places[:1] if is_name else places:
        split = several and not os.path.exists(place / text)
        items = [item.strip() for item in text.split(",")] if split else [text]
        if all(_matches(place, item) for item in items if item):
            return ",".join(_relative(place, item) for item in items if item)
    return text if is_name else None


def _matches(place, item):
    """Whether the path `item` exists, as it starts at the directory `place`, or is a pattern that matches some."""
    is_pattern = any(letter in item for letter in "*?[")
    return os.path.exists(place / item) or is_pattern and bool(glob.glob(item, root_dir=place, recursive=True))


def _relative(place, item):
    """The path `item`, which starts at the directory `place`, as written in the current directory."""
    if os.path.isabs(item) or os.path.abspath(place) == os.path.abspath("."):
        return item
    try:
        start = os.path.relpath(place)
    except ValueError:  # on Windows, another drive
        start = os.path.abspath(place)
    return os.path.join(start if (Path(start) / item).exists() else glob.escape(start), item)


def given_here(run_dir, config, text):
    """Paths that are given in the current directory, as run.json of a run must write them."""
    [place, *_] = directories(run_dir, config)
    if os.path.abspath(place) == os.path.abspath(".") or text.strip() in NAMES:
        return text
    items = [text] if os.path.exists(text) else [item.strip() for item in text.split(",")]
    return ",".join(_relative_to(place, item) for item in items if item)


def _relative_to(place, item):
    """The path `item`, which starts at the current directory, as written in the directory `place`."""
    if os.path.isabs(item):
        return item
    try:
        return os.path.relpath(item, place)
    except ValueError:  # on Windows, another drive
        return os.path.abspath(item)


def same_files(one, other):
    """Whether two texts of paths, separated by commas, name the same files or corpora."""
    return one == other or [os.path.realpath(path.strip()) for path in one.split(",")] == [
        os.path.realpath(path.strip()) for path in other.split(",")
    ]
