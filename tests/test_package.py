"""The installed package: its names, what importing it loads, and a wheel that trains in a clean environment."""

import configparser
import importlib.util
import os
import re
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


def test_importing_slm_np_changes_no_path(tmp_path):
    """Only kernels and data are found beside slm_np, by these names, and not the rest of a checkout."""
    script = (
        "import importlib.util, sys; before = list(sys.path), list(sys.meta_path), list(sys.path_hooks); "
        "import slm_np; assert before == (sys.path, sys.meta_path, sys.path_hooks) and len(slm_np.__path__) == 1; "
        "names = 'kernels', 'data', 'tests', 'slm_np'; "
        "print([name for name in names if importlib.util.find_spec('slm_np.' + name)])"
    )
    assert python(script, tmp_path).strip() == "['kernels', 'data']"


def test_modules_of_kernels_and_data_are_pickled_by_name_and_reloaded(tmp_path):
    script = (
        "import importlib, pickle, slm_np, slm_np.data.documents as documents; "
        "first = pickle.dumps(documents.split); importlib.reload(slm_np); "
        "assert pickle.loads(first) is slm_np.data.documents.split; assert b'slm_np.data' in first"
    )
    python(script, tmp_path)


CODE = ("slm_np", "kernels", "data")
BUILD = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture
def source_tree(tmp_path):
    """A copy of the checkout as a zip archive would give it: no git, no symlinks, no compiled files."""
    if not all((ROOT / name).exists() for name in CODE + BUILD):
        pytest.skip("this is not a checkout")
    folder = tmp_path / "source"
    folder.mkdir()
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD:
        shutil.copy(ROOT / name, folder)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    return folder


def run_in(folder, *words, **more):
    """Run Python with the package in the folder `folder`, and no other path. Returns its stdout and stderr."""
    unset = ("PYTHONPATH", "PYTHONSAFEPATH")
    environment = {name: value for name, value in small.environment(**more).items() if name not in unset}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_every_package_is_in_setup_cfg():
    """`packages` there is a list, since find_namespace: does not see the folders beside slm_np."""
    setup = configparser.ConfigParser()
    if not setup.read(ROOT / "setup.cfg", encoding="utf-8"):
        pytest.skip("this is not a checkout")
    found = {path.parent.relative_to(ROOT) for name in CODE for path in (ROOT / name).rglob("*.py")}
    found |= {parent for path in found for parent in path.parents} - {Path()}
    names = {".".join(path.parts if path.parts[0] == "slm_np" else ("slm_np", *path.parts)) for path in found}
    listed = setup["options"]["packages"].split()
    assert set(listed) == names and len(listed) == len(names)


@pytest.mark.parametrize("leftover", [False, True], ids=["", "with-the-files-of-disabled-symlinks"])
def test_a_downloaded_copy_trains_without_installation(source_tree, leftover, tmp_path):
    """Older commits had symlinks slm_np/kernels and slm_np/data. Where git makes none, it wrote text files."""
    for name in ("kernels", "data"):
        if leftover:
            (source_tree / "slm_np" / name).write_text(f"../{name}", encoding="utf-8")
    script = (
        "import inspect, slm_np, slm_np.kernels.cpu.jit as jit, slm_np.data.workers as workers; "
        "print(slm_np.__file__, jit.__file__, inspect.getsourcefile(jit.kernel), workers.__file__, sep='\\n')"
    )
    assert [Path(line).relative_to(source_tree).as_posix() for line in run_in(source_tree, "-c", script).split()] == [
        "slm_np/__init__.py",
        "kernels/cpu/jit.py",
        "kernels/cpu/jit.py",
        "data/workers.py",
    ]
    assert "--out-dir" in run_in(source_tree, "-O", "-m", "slm_np.train", "--help")
    small.text_file(tmp_path)
    words = small.flags(tmp_path / "text.txt", kernels="numpy", max_iters=2, log_interval=1, out_dir=tmp_path / "run")
    assert "step 2/2" in run_in(source_tree, "-O", "-m", "slm_np.train", *words)


def test_a_downloaded_copy_tokenizes_in_worker_processes(source_tree, tmp_path):
    script = (
        "import sys; from slm_np.data import shards, store_builder as builder; shards.SHARD = 4096; "
        "start = builder.tokenize_in_processes; "
        "builder.tokenize_in_processes = lambda *given: (print(given[2], 'processes'), start(*given)); "
        "from slm_np.prepare import main; main(sys.argv[1:])"
    )
    text = small.text_file(tmp_path, lines=2000)
    printed = run_in(source_tree, "-c", script, str(text), "--out-dir", str(tmp_path / "tokens"), "--threads", "2")
    assert "2 processes" in printed and (tmp_path / "tokens" / "train.bin").stat().st_size


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
def test_a_wheel_trains_in_a_clean_environment_from_another_folder(source_tree, tmp_path):
    """The environment holds the wheel and links to what it requires, nothing else. Kernels are compiled anew."""
    wheel = wheel_of(source_tree, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sources = [path.relative_to(ROOT) for name in CODE for path in (ROOT / name).rglob("*.py")]
        expected = [path if path.parts[0] == "slm_np" else "slm_np" / path for path in sources]
        assert sorted(name for name in names if name.endswith(".py")) == sorted(path.as_posix() for path in expected)
        kinds = {Path(name).suffix for name in names if ".dist-info/" not in name}
        assert "slm_np/data/stories_vocabulary.txt" in names and kinds == {".py", ".txt"}
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
            "--force-reinstall",  # also where PYTHONPATH has a checkout of this version
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
    assert {"numpy", "numba", "safetensors"} <= {re.match(r"[\w-]+", requirement).group() for requirement in needed}
    for requirement in needed:
        for distribution in closure(requirement).values():
            for top in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
                if not (site / top).exists():
                    (site / top).symlink_to(distribution.locate_file(top))
    assert not any((site / name).exists() for name in ("matplotlib", "pytest", "tokenizers", "huggingface_hub"))

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
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
