"""Python threads, forked processes and Numba's threading layers give the same text and the same gradients."""

import os
import re
import subprocess
import sys
import threading

import pytest
import small

from slm_np import UserError
from slm_np.ops.device import CPU

# What the programs below share: a text and an update, as one hexadecimal digest each.
JOBS = """
import hashlib, multiprocessing, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from slm_np import AdamW, Model, ModelConfig, SamplingConfig, UserError, text_of
from slm_np.data.byte_tokenizer import ByteTokenizer
from slm_np.ops.device import CPU

CONFIG = ModelConfig(vocab_size=256, block_size=32, n_layer=1, n_head=2, n_embd=32, n_hidden=64)

def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]

def written(seed):
    text = text_of(Model(CONFIG, seed=1), ByteTokenizer(), "a", 60, SamplingConfig(seed=seed))
    return digest(np.frombuffer(text.encode(), np.uint8))

def trained(seed):
    model = Model(CONFIG, seed=seed)
    optimizer, tokens = AdamW(model.parameters, 1e-3), np.random.default_rng(seed).integers(0, 256, (8, 32), np.int32)
    losses = []
    for _ in range(5):
        losses.append(model.loss_and_gradient(tokens, tokens))
        optimizer.step()
    return digest(losses, model.parameters.weights)

def job(seed):
    return written(seed) + trained(seed)
"""
MANY = "print(*[job(seed) for seed in range(4)])"


def program(text, *flags, jobs=JOBS, **variables):
    """Run a program of JOBS and `text` in a process of its own with two threads. Returns the CompletedProcess."""
    environment = small.environment(**{"NUMBA_NUM_THREADS": "2", **variables})
    return subprocess.run(
        [sys.executable, *flags, "-c", jobs + text],
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        encoding="utf-8",
        timeout=300,  # a cold cache is filled in this time; a process that hangs fails
    )


def shown(text, **variables):
    """The output of `program`, which must succeed."""
    done = program(text, **variables)
    if "which cannot be loaded here" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def expected():
    """The digests of four jobs, one after the other on one thread."""
    return shown(MANY, NUMBA_NUM_THREADS="1")


# Python threads


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_four_python_threads_on_every_threading_layer(expected, layer):
    together = """
import numba
barrier = threading.Barrier(4)
def at_once(seed):
    barrier.wait()
    return job(seed)
for _ in range(3):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(at_once, range(4)))
print(*found)
"""
    assert shown(together, NUMBA_THREADING_LAYER=layer) == expected


@pytest.fixture
def restored():
    """A number of threads that a test sets is reset after it."""
    before = CPU.kernels.thread_count()
    yield
    CPU.use_threads(before)


def in_a_new_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_the_number_of_threads_holds_in_every_python_thread(restored):
    most = CPU.use_threads(0)
    for number in {1, most}:
        assert CPU.use_threads(number) == number
        assert in_a_new_thread(lambda: CPU.kernels.thread_count()) == number
    assert in_a_new_thread(lambda: CPU.use_threads(1)) == 1
    assert CPU.kernels.thread_count() == 1


def test_a_thread_that_began_before_the_number_was_chosen_takes_it(restored):
    CPU.use_threads(0)
    chosen, found = threading.Event(), []

    def work():
        found.append(CPU.kernels.thread_count())
        chosen.wait(60)
        found.append(CPU.kernels.thread_count())

    thread = threading.Thread(target=work)
    thread.start()
    while not found:
        pass
    CPU.use_threads(1)
    chosen.set()
    thread.join()
    assert found[1] == 1


def test_a_quota_sets_the_default_and_numba_num_threads_bounds_it(monkeypatch, restored):
    from slm_np.kernels.cpu import threads

    most = threads.numba.config.NUMBA_NUM_THREADS
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    assert CPU.use_threads(0) == 1 and CPU.use_threads(most) == most
    monkeypatch.setattr(threads, "available_cores", lambda: most + 7)
    assert CPU.use_threads(0) == most
    with pytest.raises(UserError, match=f"give at most {most}, or set NUMBA_NUM_THREADS"):
        CPU.use_threads(most + 1)
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    monkeypatch.setattr(threads, "_chosen", 0)
    CPU.use_kernels()
    assert CPU.kernels.thread_count() == 1


def test_only_on_the_workqueue_kernels_take_turns(monkeypatch):
    from numba import njit

    from slm_np.kernels.cpu import threads

    function = njit(lambda x: x + 1)
    monkeypatch.setattr(threads, "LAYER", "omp")
    assert type(threads.one_at_a_time(function)) is threads.CPUDispatcher and function(1) == 2
    monkeypatch.setattr(threads, "LAYER", "workqueue")
    assert threads.one_at_a_time(function) is function and function(2) == 3
    caller = threading.Thread(target=function, args=[3])
    with threads.TURN:
        caller.start()
        caller.join(0.05)
        assert caller.is_alive()
        assert function(4) == 5  # the holder of the turn may go on
    caller.join()


# Fork

POOL = """
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map_async(job, range(4)).get(timeout=120))
"""
can_fork = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="the system has no safe fork")


@can_fork
@pytest.mark.slow
@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_a_pool_of_forked_processes(expected, layer):
    """Before any kernel has run, after some have, in the parent again, and in a child of a child."""
    found = shown(
        POOL
        + MANY
        + POOL
        + MANY
        + """
def grandchild(seed):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map_async(job, [seed]).get(timeout=120)[0]
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
    print(*pool.map(grandchild, range(4), timeout=120))
""",
        NUMBA_THREADING_LAYER=layer,
    )
    assert found == 5 * expected


@can_fork
@pytest.mark.slow
def test_a_python_thread_forks_while_others_compute(expected):
    found = shown(
        """
stop, others = threading.Event(), []
def busy():
    while not stop.is_set():
        job(9)
for _ in range(2):
    others.append(threading.Thread(target=busy))
    others[-1].start()
job(8)
"""
        + POOL
        + "stop.set()\nfor other in others:\n    other.join()\n",
        NUMBA_THREADING_LAYER="omp",  # TBB prints that it cannot join its threads
    )
    assert found == expected


@can_fork
@pytest.mark.slow
def test_the_numpy_kernels_in_a_forked_process():
    found = shown("job = trained\n" + MANY + POOL, SLM_NP_KERNELS="numpy").splitlines()
    assert len(found) == 2 and found[0] == found[1]


@can_fork
def test_an_openmp_that_cannot_end_its_threads_names_spawn():
    found = shown(
        """
from slm_np.kernels.cpu import threads
threads._pauses = lambda layer: []
before = job(1)
def refused(seed):
    try:
        job(seed)
    except UserError as error:
        CPU.use_kernels("numpy")
        job(seed)
        return str(error)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map_async(refused, range(2)).get(timeout=60), sep="\\n")
assert job(1) == before
""",
        NUMBA_THREADING_LAYER="omp",
    )
    assert found.count('multiprocessing.get_context("spawn")') == 2


# Numba's settings

ONE_STEP = "print(trained(0))"


@pytest.mark.parametrize(
    "variables, words",
    [
        (dict(NUMBA_THREADING_LAYER="fast"), "NUMBA_THREADING_LAYER=fast is unknown; set it to one of default, safe"),
        (dict(NUMBA_THREADING_LAYER_PRIORITY="omp tbb"), "NUMBA_THREADING_LAYER_PRIORITY='omp tbb' does not order"),
        (dict(NUMBA_NUM_THREADS="many"), "NUMBA_NUM_THREADS='many' is not a positive whole number"),
        (dict(NUMBA_NUM_THREADS="0"), "NUMBA_NUM_THREADS='0' is not a positive whole number"),
        (dict(NUMBA_NUM_THREADS=""), "NUMBA_NUM_THREADS='' is not a positive whole number"),
    ],
)
def test_bad_settings_of_numba_get_a_sentence(variables, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "slm_np.gradcheck", "--preset", "mamba"],
        cwd=tmp_path,
        env=small.environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.startswith(f"slm_np: {words}") and done.stderr.count("\n") == 1


def test_a_threading_layer_that_is_not_installed_is_named(monkeypatch):
    from slm_np.kernels.cpu import threads

    def missing():
        raise ImportError("no TBB")

    monkeypatch.setattr(threads.parallel, "_is_initialized", False)
    monkeypatch.setattr(threads.parallel, "_check_tbb_version_compatible", missing)
    for choice in ("tbb", "safe", "TBB"):
        monkeypatch.setattr(threads.numba.config, "THREADING_LAYER", choice)
        with pytest.raises(UserError, match=f"NUMBA_THREADING_LAYER={choice.lower()} needs tbb, which cannot be load"):
            threads.load_layer()
    monkeypatch.setattr(threads.numba.config, "THREADING_LAYER", "forksafe")
    assert threads.load_layer() == ("workqueue" if sys.platform.startswith("linux") else "omp")


def test_without_the_compiler_the_numpy_kernels_are_used():
    done = program(ONE_STEP, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("slm_np: using the NumPy kernels, .* NUMBA_DISABLE_JIT switches .*\n", done.stderr)
    assert done.stdout == shown(ONE_STEP, SLM_NP_KERNELS="numpy")
    refused = program('CPU.use_kernels("numba")', NUMBA_DISABLE_JIT="1")
    assert refused.returncode == 1 and "the Numba kernels cannot run, since NUMBA_DISABLE_JIT" in refused.stderr


def test_without_numba_the_numpy_kernels_are_used():
    absent = "import sys\nsys.modules['numba'] = None\n"
    done = program(ONE_STEP, jobs=absent + JOBS)
    assert done.returncode == 0 and "using the NumPy kernels, which are slower, since Numba cannot be" in done.stderr
    assert done.stdout == shown(ONE_STEP, SLM_NP_KERNELS="numpy")


# Another OpenMP


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not bind symbols across libraries")
def test_numbas_layer_does_not_run_on_the_openmp_of_pytorch():
    """That one was loaded, with its settings, before ours were made."""
    pytest.importorskip("torch")
    which = """
import ctypes
job(0)
import numba.np.ufunc.omppool as layer
ours, theirs = ctypes.CDLL(layer.__file__), ctypes.CDLL(None)
ctypes.CFUNCTYPE(None, ctypes.c_int)(layer.launch_threads)(7)
print(ours.omp_get_max_threads(), theirs.omp_get_max_threads() == 7, torch.get_num_threads() == 7)
"""
    found = shown("import torch\n" + JOBS + which, jobs="", NUMBA_THREADING_LAYER="omp")
    assert found == "7 False False\n"


def test_the_spin_settings_are_there_only_while_openmp_is_loaded():
    """And a choice of the user's is left alone."""
    load = """
from slm_np.kernels.cpu import threads
seen = []
threads.ctypes.CDLL = lambda path: seen.append(dict(os.environ)) or object()
for variables in ({}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}):
    sys.modules.pop("numba.np.ufunc.omppool", None)
    os.environ.update(variables)
    before = dict(os.environ)
    threads._load_openmp()
    assert dict(os.environ) == before
    print(seen[-1].get("GOMP_SPINCOUNT"), seen[-1].get("KMP_BLOCKTIME"))
    for name in variables:
        del os.environ[name]
"""
    found = shown(load, NUMBA_THREADING_LAYER="omp", GOMP_SPINCOUNT=None, OMP_WAIT_POLICY=None, KMP_BLOCKTIME=None)
    assert found == "2000 0\nNone None\n5 None\n"
