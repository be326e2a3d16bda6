"""The check of all rows of JSON before they are tokenized, so that one message names all that are wrong."""

from pathlib import Path

from slm_np.data.chat_template import parse_row
from slm_np.data.documents import lines
from slm_np.data.meter import metered
from slm_np.data.text_files import Text, is_rows, origin
from slm_np.errors import UserError

SHOWN = 5  # numbers that a message lists


def check_rows(text, progress=True):
    """[sentence, ...] about the rows in a `Text` that have nothing to learn, and are therefore left out.

    UserError names the malformed rows of a file by their numbers, or the first file if no row of any has something to
    learn.
    """
    files, notes, learnt = [file for file in text.files if file[1]], [], 0
    for file in filter(is_rows, files):
        n, empty = _checked(file, progress)
        learnt += n - len(empty)
        if empty:
            path, unit = origin(file[0]).values()
            have, are = ("has", "is") if len(empty) == 1 else ("have", "are")
            notes.append(
                f"{path}: {len(empty):,} of {n:,} rows {have} an empty text or message and {are} left out "
                f"({listed(empty, unit)})"
            )
    if files and not learnt and all(map(is_rows, files)):
        raise UserError(
            f"{origin(files[0][0])['path']} has no row with anything to learn; give rows with text or replies"
        )
    return notes


def _checked(file, progress):
    """(number of rows, [number of a row without anything to learn, ...]) of a file of rows."""
    path, unit = origin(file[0]).values()
    n, empty, wrong, first = 0, [], [], None
    for number, line in enumerate(
        lines(metered(Text((file,)).blocks(), file[1], f"checking {Path(path).name}", progress)), 1
    ):
        if line.strip():
            n += 1
            try:
                if parse_row(line, path, number, unit) is None:
                    empty.append(number)
            except UserError as error:
                first = first or error
                wrong.append(number)
    if len(wrong) > 1:
        raise UserError(f"{first}; {len(wrong):,} of {n:,} rows of {path} are malformed ({listed(wrong, unit)})")
    if first:
        raise first
    return n, empty


def listed(numbers, unit):
    """'line 3', 'lines 3, 7 and 12', or the first ones of many."""
    if len(numbers) == 1:
        return f"{unit} {numbers[0]:,}"
    shown, rest = [f"{number:,}" for number in numbers[:SHOWN]], len(numbers) - SHOWN
    last = f"{rest:,} more" if rest > 0 else shown.pop()
    return f"{unit}s {', '.join(shown)} and {last}"
