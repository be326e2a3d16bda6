"""data/README.md: it names every file, and its example runs."""

import contextlib
import io
import re
from pathlib import Path

import small

from slm_np.data import embedded

FOLDER = Path(small.__file__).resolve().parents[1] / "data"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_every_file():
    named = set(re.findall(r"`(\w+\.py)`", TEXT))
    assert {path.name for path in FOLDER.glob("*.py")} == named


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NP_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "SPLIT_BYTES", dict(train=20_000, validation=2000))
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert len(printed.getvalue()) == 65
