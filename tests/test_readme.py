"""What the README shows a reader to type must work as it stands there."""

import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest
import small

from slm_np.config import ModelConfig
from slm_np.nn.model import Model, parameter_count
from slm_np.presets import PRESETS, preset

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


@pytest.mark.parametrize("folder", ["slm_np", "slm_np/ops", "slm_np/mixers", "data"])
def test_the_tree_has_a_line_for_every_file(folder):
    for path in (README.parent / folder).glob("*.py"):
        assert path.name == "__init__.py" or re.search(rf"^ +{re.escape(path.name)} +\w", TEXT, re.M), path


def test_the_contract_lists_every_kernel_file():
    contract = (README.parent / "kernels" / "README.md").read_text(encoding="utf-8")
    for path in (README.parent / "kernels" / "cpu").glob("[!_]*.py"):
        assert f"`{path.name}`" in contract, path


def test_a_model_shows_its_memory_plan():
    table = Model(ModelConfig(n_layer=2, n_embd=16, block_size=8)).plan(3, 8).arena.table()
    assert re.search(r"^layers\.\*\.attention\.qkv +2 x 24 x 48 +saved +[\d.]+ MiB$", table, re.M), table
    assert table.splitlines()[-1].startswith("activations")


def test_flags_in_the_readme_exist():
    commands = [importlib.import_module(f"slm_np.{verb}") for verb in ("train", "generate")]
    known = {flag for module in commands for action in module.parser()._actions for flag in action.option_strings}
    shown = " ".join(re.findall(r"^.*python -m slm_np\.(?:train|generate).*$", TEXT, re.M))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", shown)) <= known
