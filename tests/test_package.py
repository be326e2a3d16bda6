"""The installed package: its names, what importing it loads, and a wheel that trains in a clean environment."""

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import small
from conftest import ROOT

import slm_np


def python(script, cwd, **options):
    """Run a script with the slm_np of this process. Returns its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=small.environment(),
        capture_output=True,
        encoding="utf-8",
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_slm_np_is_the_only_top_level_package():
    """`kernels` is the package of another project, which programs look for. In a clone it must stay a plain folder."""
    for name in ("kernels", "data"):
        found = importlib.util.find_spec(name)
        assert found is None or found.origin is None or not Path(found.origin).resolve().is_relative_to(ROOT)
        assert not (ROOT / name / "__init__.py").exists()
    script = "import importlib.util; print(type(getattr(importlib.util.find_spec('kernels'), 'loader', None)).__name__)"
    assert python(script, ROOT).strip() in ("NoneType", "NamespaceLoader")


def test_importing_slm_np_loads_no_numerics(tmp_path):
    loaded = python("import slm_np, sys; print(*sorted(sys.modules))", tmp_path).split()
    assert not {"numba", "numpy", "scipy", "safetensors", "tqdm", "matplotlib"} & set(loaded)


def test_every_public_name_exists():
    assert all(getattr(slm_np, name) is not None for name in slm_np.__all__)
    assert set(slm_np.__all__) <= set(dir(slm_np))
    with pytest.raises(AttributeError, match="no attribute 'modle'"):
        slm_np.modle


def test_a_checkout_without_symlinks_finds_kernels_and_data(tmp_path):
    """Where git makes no symlinks, as on Windows by default, it writes files that contain their targets."""
    for name in ("slm_np", "data"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "kernels", "data"))
    for name in ("kernels", "data"):
        (tmp_path / "slm_np" / name).write_text(f"../{name}", encoding="utf-8")
    script = "import slm_np, slm_np.data.documents as found; print(slm_np.__file__); print(found.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=small.environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "slm_np" / "__init__.py"), str(tmp_path / "data" / "documents.py")]


def closure(name):
    """The installed distributions that `name` needs without extras."""
    requirements = pytest.importorskip("packaging.requirements")
    found, waiting = {}, [name]
    while waiting:
        requirement = requirements.Requirement(waiting.pop())
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[requirement.name] = metadata.distribution(requirement.name)
        waiting += found[requirement.name].requires or []
    return found


def wheel_of(tree, folder):
    """A wheel of a clean source tree. Skips if neither setuptools nor a package index is available."""
    options = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "-w", str(folder), str(tree)],
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    if done.returncode and not options:
        pytest.skip(f"setuptools is neither installed nor in a package index: {done.stderr.strip().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr
    return next(Path(folder).glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_trains_in_a_clean_environment_from_another_folder(tmp_path):
    """The environment holds the wheel and links to what it requires, nothing else. Kernels are compiled anew."""
    if not (ROOT / "setup.cfg").exists() or not (ROOT / "slm_np" / "kernels").is_symlink():
        pytest.skip("this is not a clone with its symlinks")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "slm_np", "kernels", "data"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    wheel = wheel_of(source, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {
            "slm_np/train.py",
            "slm_np/kernels/cpu/gemm_f32.py",
            "slm_np/data/stories.py",
            "slm_np/ops/norm.py",
        } <= set(names)
        assert {name.split("/")[0] for name in names} == {"slm_np", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
        assert not any(info.external_attr >> 28 == 0xA for info in archive.infolist())  # links
        [metadata_text] = [archive.read(name).decode() for name in names if name.endswith("METADATA")]
        assert f"\nVersion: {slm_np.__version__}\n" in metadata_text

    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    inside = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(
        subprocess.run(
            [inside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.strip()
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(inside),
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        check=True,
    )
    needed = [
        line.split(":", 1)[1].strip()
        for line in metadata_text.splitlines()
        if line.startswith("Requires-Dist:") and "extra" not in line
    ]
    assert len(needed) >= 7
    for requirement in needed:
        for distribution in closure(requirement).values():
            for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
                if not (site / top).exists():
                    (site / top).symlink_to(distribution.locate_file(top))
    assert not (site / "matplotlib").exists() and not (site / "pytest").exists()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SLM_NP"))} | {
        "SLM_NP_CACHE": str(tmp_path / "cache")
    }
    where = subprocess.run(
        [inside, "-c", "import slm_np; print(slm_np.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert Path(where).resolve().is_relative_to(site.resolve())
    words = (
        "--n-layer 1 --n-head 2 --n-embd 16 --n-hidden 24 --block-size 64 "
        "--max-iters 2 --eval-interval 2 --eval-iters 1 --log-interval 1"
    ).split()
    done = subprocess.run(
        [inside, "-m", "slm_np.train", *words],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "compiling kernels" in done.stderr
        and "step 2/2" in done.stderr
        and "validation" in done.stdout
        and "matplotlib is not installed" in done.stdout
    )
    assert sorted(path.name for path in (elsewhere / "runs" / "stories").iterdir()) == [
        "checkpoint-0",
        "checkpoint-2",
        "config.json",
        "generation_config.json",
        "metrics.jsonl",
        "model.safetensors",
        "tokenizer.json",
    ]
