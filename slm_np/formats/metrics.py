"""metrics.jsonl: what a run logs, one JSON object per line.

It is for people and for `info`. Nothing that a run computes or keeps depends on it, so it has no checksum: a line that
is damaged is left out.
"""

import contextlib
import json
import os
from pathlib import Path

from slm_np.formats.files import read_bytes, saving, to_json, write_file

NUMBERS = ("loss", "train_loss", "val_loss", "val_bpb", "replay_loss", "time_s")  # what others compute with
LARGEST = 1e30


def _line(row):
    """`row` as a line of strict JSON. JSON has no NaN and no infinity: they become null."""
    return to_json(json.loads(to_json(row), parse_constant=lambda constant: None)) + b"\n"


def append_metrics(run_dir, row):
    """Append the dict `row` to metrics.jsonl as a line. NaN and infinity become null.

    The line reaches the operating system before this returns, but is not flushed to disk: losing rows in a power cut is
    harmless. UserError if the file cannot be written.
    """
    path = Path(run_dir) / "metrics.jsonl"
    with saving(path), open(path, "ab") as file:
        file.write(_line(row))


def read_metrics(run_dir):
    """The rows of metrics.jsonl as dicts; [] if there is no file. Incomplete and damaged lines are skipped.

    Each row has a step. The values of NUMBERS, where a row has them, are numbers or None.
    """
    path = Path(run_dir) / "metrics.jsonl"
    rows = []
    for line in read_bytes(path).split(b"\n") if os.path.exists(path) else []:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line.decode("utf-8"), parse_constant=lambda constant: None)
            if isinstance(row, dict) and _is_sound(row):
                rows.append(row)
    return rows


def _is_sound(row):
    numbers = [row[name] for name in NUMBERS if row.get(name) is not None]
    return (
        type(row.get("step")) is int
        and 0 <= row["step"] < 1 << 63
        and all(type(value) in (int, float) and abs(value) <= LARGEST for value in numbers)
    )


def trim_metrics(run_dir, step, evaluated):
    """Remove what a run that resumes writes again, and damaged lines, atomically.

    step       the last step that stays
    evaluated  the last evaluation that stays
    """
    path = Path(run_dir) / "metrics.jsonl"
    if os.path.exists(path):
        kept = [row for row in read_metrics(run_dir) if row["step"] <= (evaluated if "val_loss" in row else step)]
        write_file(path, b"".join(map(_line, kept)))
