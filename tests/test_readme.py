"""What the README shows a reader to type must work as it stands there."""
import contextlib
import io
import re
from pathlib import Path

import pytest

import small
from slm_np.presets import PRESETS, preset
from slm_np.model import parameter_count

README = Path(small.__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_the_library_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    (tmp_path / "README.md").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    loss = float(printed.getvalue().split()[0])
    assert loss < 4.5, "thirty steps must teach a byte model more than the uniform distribution's 5.5 nats"


def test_every_preset_is_in_the_table_with_its_size():
    for name in PRESETS:
        (row,) = re.findall(rf"^\| `{name}` \|.*$", TEXT, re.M)
        n = parameter_count(preset(name)[0])
        assert f"{n:,}" in row or f"{n / 1e6:.1f}M" in row, row


@pytest.mark.parametrize("folder, pattern", [("slm_np", "*.py"), ("slm_np/mixers", "[!_]*.py"), ("data", "*.py"), ("kernels/cpu", "[!_]*.py")])
def test_the_tree_names_every_file(folder, pattern):
    described = TEXT + (README.parent / "kernels" / "README.md").read_text(encoding="utf-8")
    for path in (README.parent / folder).glob(pattern):
        assert path.name.startswith("__") or path.stem in described, path


def test_flags_in_the_readme_exist():
    from slm_np import generate, train
    known = {flag for parser in (train.parser(), generate.parser()) for action in parser._actions for flag in action.option_strings}
    commands = " ".join(re.findall(r"^.*python -m slm_np\.(?:train|generate).*$", TEXT, re.M))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", commands)) <= known
