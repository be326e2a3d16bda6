"""metrics.jsonl: one JSON object per line."""

import contextlib
import json
import os
from pathlib import Path

from slm_np.formats.files import read_bytes, saving, to_json, write_bytes


def _line(row):
    """`row` as a line of strict JSON, which has no NaN and no infinity: they become null."""
    return to_json(json.loads(to_json(row), parse_constant=lambda constant: None)) + b"\n"


def append_metrics(run_dir, row):
    """Add the dict `row` as a line to metrics.jsonl, flushed to the OS; NaN and infinity become null. UserError if the disk refuses."""
    path = Path(run_dir) / "metrics.jsonl"
    with saving(path), open(path, "ab") as file:
        file.write(_line(row))


def read_metrics(run_dir):
    """The rows of metrics.jsonl as dicts, [] without the file. Lines that a kill tore are left out."""
    path = Path(run_dir) / "metrics.jsonl"
    rows = []
    for line in read_bytes(path).split(b"\n") if os.path.exists(path) else []:
        with contextlib.suppress(ValueError):
            if isinstance(row := json.loads(line.decode("utf-8")), dict):
                rows.append(row)
    return rows


def trim_metrics(run_dir, step):
    """Drop torn lines and rows of steps after `step` from metrics.jsonl, atomically: call it on resuming from `step`."""
    path = Path(run_dir) / "metrics.jsonl"
    if os.path.exists(path):
        with saving(path):
            write_bytes(path, b"".join(_line(row) for row in read_metrics(run_dir) if row.get("step", 0) <= step))
