"""The process of a user: what importing and using the package leaves as it was, and where it starts."""

import os
import subprocess
import sys

import pytest
import small

from slm_np.errors import UserError
from slm_np.paths import cache_dir, cache_path, expanded, import_path

# state() is all that a program may rely on: {name: value}.
STATE = """
import decimal, gc, locale, logging, multiprocessing, os, random, signal, sys, threading, warnings
import numba, numpy as np
from threadpoolctl import threadpool_info

@numba.njit(parallel=True)
def users_function(x):
    for i in numba.prange(len(x)):
        x[i] = 2 * x[i] + 1

def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask

def state():
    return dict(
        environment=dict(os.environ),
        signals={number: signal.getsignal(number) for number in signal.valid_signals()},
        numba={name: value for name, value in vars(numba.config).items() if name.isupper()},
        numba_threads=numba.get_num_threads(),
        blas_threads=sorted((lib["filepath"], lib["num_threads"]) for lib in threadpool_info()),
        warnings=list(warnings.filters), showwarning=warnings.showwarning,
        random=random.getstate(), numpy_random=repr(np.random.get_state()),
        numpy_errors=np.geterr(), numpy_printing=np.get_printoptions(),
        locale=locale.setlocale(locale.LC_ALL), folder=os.getcwd(), path=list(sys.path),
        dlopen=getattr(sys, "getdlopenflags", int)(), umask=umask(),
        cores=sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (),
        logging=(list(logging.root.handlers), logging.root.level, logging.root.manager.disable),
        hooks=(sys.excepthook, sys.displayhook, threading.excepthook, sys.unraisablehook, sys.breakpointhook),
        streams=(sys.stdin, sys.stdout, sys.stderr), interval=sys.getswitchinterval(),
        recursion=sys.getrecursionlimit(), collector=(gc.isenabled(), gc.get_threshold()),
        decimals=repr(decimal.getcontext()), start=multiprocessing.get_start_method(allow_none=True),
    )

def changed(before, after):
    found = [name for name in before if before[name] != after[name]]
    return {name: (before[name], after[name]) for name in found}

users_function(np.ones(100))
before = state()
"""
USED = """
from slm_np import *
model = Model(ModelConfig(vocab_size=256, block_size=32, n_layer=1, n_head=2, n_embd=32, n_hidden=64), seed=1)
corpus = load_corpus(sys.argv[1], tokenizer="byte", progress=False)
optimizer = AdamW(model.parameters, 1e-3)
tokens, targets = np.zeros((2, 4, 32), np.int32)
random_batch(tokens, targets, corpus.train, 1, 2, 3)
model.loss_and_gradient(tokens, targets)
optimizer.step()
text_of(model, corpus.tokenizer, "the", 20, SamplingConfig(seed=1))
"""


def python(code, *words, cwd, flags=(), **variables):
    """Run a program in a process of its own. A variable that is None is unset. Returns the CompletedProcess."""
    environment = small.environment(**{"NUMBA_NUM_THREADS": None, **variables})
    return subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, words)],
        cwd=cwd,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.mark.parametrize("kernels", ["numba", "numpy"])
def test_using_the_package_changes_nothing_in_the_process(kernels, tmp_path):
    data = small.text_file(tmp_path)
    done = python(STATE + USED + "print(changed(before, state()))", data, cwd=tmp_path, SLM_NP_KERNELS=kernels)
    assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr


def test_a_command_that_a_program_calls_changes_nothing_in_the_process(tmp_path):
    """As in a notebook."""
    words = small.flags(small.text_file(tmp_path), out_dir=tmp_path / "run", threads=0)
    code = STATE + "from slm_np.train import main\nmain(sys.argv[1:])\nprint(changed(before, state()))"
    done = python(code, *words, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "{}", done.stdout + done.stderr


# Interpreters and environments

COMMAND = "import sys; sys.argv[0] = 'train'; from slm_np.train import main; main()"
NOTEBOOK = """
import asyncio, io, sys
class Stream(io.StringIO):
    def fileno(self):
        raise io.UnsupportedOperation("fileno")
sys.argv[0], sys.stdout, sys.stderr = "train", Stream(), Stream()
from slm_np.train import main
async def cell():
    main()
try:
    asyncio.run(cell())
finally:
    sys.__stdout__.write(sys.stdout.getvalue())
    sys.__stderr__.write(sys.stderr.getvalue())
"""
WITHOUT_FOLDER = "import os, sys; os.rmdir(os.getcwd()); sys.path.insert(0, '')\n" + COMMAND
FOUND = f"import sys; sys.path[:0] = {import_path()!r}\n" + COMMAND  # where PYTHONPATH does not count
INTERPRETERS = {
    "-O": (COMMAND, ["-O"], {}),
    "-OO": (COMMAND, ["-OO"], {}),
    "-W error": (COMMAND, [], dict(PYTHONWARNINGS="error")),
    "-I": (FOUND, ["-I"], {}),
    "-E -s": (FOUND, ["-E", "-s"], {}),
    "-B": (COMMAND, [], dict(PYTHONDONTWRITEBYTECODE="1")),
    "-X dev": (COMMAND, ["-X", "dev"], {}),
    "a notebook": (NOTEBOOK, [], {}),
    "no stdin": ("import os; os.close(0)\n" + COMMAND, [], {}),
    "no working directory": (WITHOUT_FOLDER, [], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETERS)
def test_training_in(name, tmp_path):
    code, flags, variables = INTERPRETERS[name]
    data, folder = small.text_file(tmp_path, lines=60), tmp_path / "empty"
    folder.mkdir()

    def run(*words):
        folder.mkdir(exist_ok=True)
        done = python(code, *words, cwd=folder, flags=flags, **variables)
        assert done.returncode == 0 and "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
        return done.stdout

    assert "--max-iters" in run("--help")
    for kernels in ("numpy", "numba"):
        words = small.flags(data, out_dir=tmp_path / kernels, max_iters=3, kernels=kernels)
        assert "bits/byte" in run(*words)


# Cache folders

HOMELESS = """
import os, pwd
del os.environ["HOME"]
def unknown(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")
pwd.getpwuid = unknown
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no list of users of this kind")
def test_a_user_without_a_home_folder_trains_with_a_temporary_cache(tmp_path):
    words = small.flags(small.text_file(tmp_path), out_dir=tmp_path / "run", max_iters=3, kernels="numpy")
    done = python(
        HOMELESS + COMMAND, *words, cwd=tmp_path, SLM_NP_CACHE=None, XDG_CACHE_HOME=None, TMPDIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "cache folder" in line)
    assert "this user has none; using " in line and line.endswith("set SLM_NP_CACHE to another folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "text.txt"]  # the temporary folder is gone


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no list of users of this kind")
@pytest.mark.parametrize("words", [("--tokenizer", "file:~/x.json"), ("--out-dir", "~/run"), ("--data", "~/none.txt")])
def test_a_path_with_a_tilde_without_a_home_folder_is_no_bug(words, tmp_path):
    flags = small.flags(small.text_file(tmp_path), max_iters=3, kernels="numpy")
    done = python(HOMELESS + COMMAND, *flags, *words, cwd=tmp_path, SLM_NP_CACHE=str(tmp_path / "cache"))
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_written_is_read(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"in the way")
    configured = tmp_path / "file" / "cache"
    assert cache_path(configured) == configured and not capsys.readouterr().err
    assert cache_dir(configured) != configured and "cannot be written" in capsys.readouterr().err
    assert cache_path(tmp_path / "file") == tmp_path / "file" and cache_dir(tmp_path / "file").is_dir()


def test_no_folder_at_all_gets_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"in the way")

    def none(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("slm_np.paths.tempfile.mkdtemp", none)
    with pytest.raises(UserError, match="no temporary folder can be written; set SLM_NP_CACHE or TMPDIR to one"):
        cache_dir(tmp_path / "file" / "other")


def test_a_relative_cache_in_a_deleted_working_directory(tmp_path, monkeypatch, capsys):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.getcwd", gone)
    found = cache_dir("relative")
    assert found.is_absolute() and found.is_dir() and cache_path("relative") == found
    assert "relative to a working directory that no longer exists" in capsys.readouterr().err
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    assert import_path() == [str(tmp_path)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_does_not_remove_its_parents_temporary_cache(tmp_path):
    code = """
import os, sys
from slm_np.paths import cache_dir
folder = cache_dir(sys.argv[1])
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
print(folder.is_dir())
"""
    (tmp_path / "file").write_bytes(b"in the way")
    done = python(code, tmp_path / "file", cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr


def test_a_tilde_stands_for_the_home_folder(monkeypatch, tmp_path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert expanded("~/x") == tmp_path / "x" and str(expanded("a/~")) == os.path.join("a", "~")
