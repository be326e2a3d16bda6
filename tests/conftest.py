"""Shared by all tests: the import path, the folder of test data, the number of threads."""

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # for the PyTorch twin
sys.path.append(str(ROOT))  # last, so that an installed slm_np comes before the checkout
os.environ["HF_HUB_OFFLINE"] = "1"  # tests use no network; test_hub.py starts a local server
# A background job of a shell ignores SIGINT, and one of nohup SIGHUP. Commands respect that, and tests send both.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL), ("SIGTERM", signal.SIG_DFL)):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, name), handler)


@pytest.fixture(scope="session")
def test_data():
    """The folder of files made by other programs (checkpoints, vocabularies), which are not in this repository."""
    if not os.environ.get("SLM_NP_TEST_DATA"):
        pytest.skip("SLM_NP_TEST_DATA does not name the folder of test data")
    return Path(os.environ["SLM_NP_TEST_DATA"])


@pytest.fixture
def threads():
    """threads(n) sets the number of threads of all kernels until the test ends."""
    from slm_np.kernels.cpu import threads
    from slm_np.ops.device import CPU

    before = threads.thread_count()
    yield CPU.use_threads
    threads.use_threads(before)


@pytest.fixture
def one_thread(threads):
    """One thread: arrays in tests are too small for more, and on a busy machine threads wait for each other."""
    threads(1)


@pytest.fixture
def numpy_kernels():
    """The kernels of NumPy, for tests that need not compile others."""
    from slm_np.ops.device import CPU

    CPU.use_kernels("numpy")
    yield
    CPU.use_kernels()


@pytest.fixture(scope="session")
def transformers():
    """The library transformers, the oracle of tests, quiet and with one thread of PyTorch."""
    library = pytest.importorskip("transformers", reason="transformers, the oracle of these tests, is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch, which transformers needs, is not installed")
    torch.set_num_threads(1)
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


@pytest.fixture(params=["numpy", pytest.param("numba", marks=pytest.mark.slow)])
def kernel_set(request):
    """Run a test on both kernel sets of the CPU. Compiling the fast one in float64 takes minutes, hence slow."""
    from slm_np.ops.device import CPU

    CPU.use_kernels(request.param)
    yield request.param
    CPU.use_kernels()
