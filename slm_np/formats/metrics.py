"""metrics.jsonl: what a run logs, one JSON object per line."""

import contextlib
import json
import os
from pathlib import Path

from slm_np.formats.files import read_bytes, saving, to_json, write_bytes


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
    """The rows of metrics.jsonl as dicts; [] if there is no file. Lines that a kill left incomplete are skipped."""
    path = Path(run_dir) / "metrics.jsonl"
    rows = []
    for line in read_bytes(path).split(b"\n") if os.path.exists(path) else []:
        with contextlib.suppress(ValueError):
            if isinstance(row := json.loads(line.decode("utf-8")), dict):
                rows.append(row)
    return rows


def trim_metrics(run_dir, step):
    """Remove incomplete lines and the rows of steps after `step`, atomically. Call it when resuming from `step`."""
    path = Path(run_dir) / "metrics.jsonl"
    if os.path.exists(path):
        with saving(path):
            write_bytes(path, b"".join(_line(row) for row in read_metrics(run_dir) if row.get("step", 0) <= step))
