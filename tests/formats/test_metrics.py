"""metrics.jsonl: incomplete lines are skipped and removed, and every line is strict JSON."""

import numpy as np
import pytest

from slm_np.errors import UserError
from slm_np.formats.metrics import append_metrics, read_metrics, trim_metrics


def test_trimming_metrics_removes_an_incomplete_line(tmp_path):
    assert read_metrics(tmp_path) == []
    trim_metrics(tmp_path, 3, 3)
    assert not list(tmp_path.iterdir())
    rows = [{"step": step, "loss": np.float32(1 / 2**step), "note": "größe\n"} for step in range(1, 6)]
    for row in rows:
        append_metrics(tmp_path, row)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    assert whole.count(b"\n") == 5 and read_metrics(tmp_path) == rows
    last = whole.rindex(b"{")
    for length in range(last, len(whole) + 1):  # a kill may cut the last line anywhere
        path.write_bytes(whole[:length])
        trim_metrics(tmp_path, 10, 10)
        assert read_metrics(tmp_path) == rows[: 5 if length >= len(whole) - 1 else 4]
        assert path.read_bytes().endswith(b"}\n")
    path.write_bytes(whole + b'{"step": 6, "lo')
    trim_metrics(tmp_path, 3, 3)
    append_metrics(tmp_path, {"step": 4})
    assert read_metrics(tmp_path) == rows[:3] + [{"step": 4}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    with pytest.raises(UserError, match="cannot write .*metrics.jsonl"):
        append_metrics(tmp_path / "nowhere", {"step": 1})


def test_nan_and_infinity_in_metrics_become_null(tmp_path):
    append_metrics(tmp_path, {"step": 1, "loss": np.float32(np.nan), "norms": [-np.inf, 2.0], "note": "NaN"})
    row = {"step": 1, "loss": None, "norms": [None, 2.0], "note": "NaN"}
    assert read_metrics(tmp_path) == [row]
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "loss": Infinity}\n')
    trim_metrics(tmp_path, 2, 2)
    assert b"Infinity" not in (tmp_path / "metrics.jsonl").read_bytes() and read_metrics(tmp_path) == [
        row,
        {"step": 2, "loss": None},
    ]
