"""Captured graphs: what cannot be captured runs all the same, after one message."""

from fake_cupy import cupy  # noqa: F401  a fixture

from slm_np.kernels.gpu.graph import CapturedGraph


def test_a_function_that_cannot_be_captured_runs_at_every_call(cupy, capsys):  # noqa: F811
    x, calls = cupy.zeros(3), []

    def synchronizes():
        calls.append(float(x[0]))  # forbidden while a stream is captured
        x.fill(len(calls))

    graph = CapturedGraph(cupy)
    with cupy.cuda.Stream(non_blocking=True):  # the default stream cannot be captured
        for _ in range(4):
            graph(synchronizes)
    assert graph.graph is None and x.get()[0] == len(calls) == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "cannot be captured" in message
    assert "(get)" in message  # the call that failed, not only that the capture did
