"""Where a training step's time goes: every op beside its floor.

The floor is the larger of operations / matmul rate and bytes / bandwidth.
"""

import contextlib
import time
from collections import defaultdict

import measure
from shapes import SCAN_BACKWARD, SCAN_FORWARD

FLOAT32_ONLY = ("selective_scan", "linear_recurrence")  # in mixed precision too
IN_PLACE = ("silu_backward", "gelu_backward", "gelu_tanh_backward", "swiglu_backward")  # write every array they read

# The functions below make functions of a call's arguments that return (operations, label).


def matmul(x, weight):
    """x, weight: indices of the arguments that are multiplied."""
    return lambda args: (
        2 * args[x].shape[0] * args[weight].size,
        " x ".join(map(str, (args[x].shape[0], *args[weight].shape))),
    )


def transposed_backward(args):
    rows, (vocab, width) = args[2].shape[0], args[4].shape
    return 4 * rows * vocab * width, f"{rows} x {vocab} x {width}"


def attention(n_matmuls, lse, qkv, heads):
    """n_matmuls matmuls over keys up to the query. lse, qkv, heads: indices of arguments."""

    def count(args):
        rows, steps = args[lse].shape  # (B H, T)
        head_dim = args[qkv].shape[1] // (args[heads] + 2 * args[heads + 1])
        return n_matmuls * 2 * rows * steps * (steps + 1) // 2 * head_dim, ""

    return count


def scan(factor, A_log):
    """`factor` for every state of every channel of every token. A_log: index of the argument of shape (S, E)."""
    return lambda args: (factor * args[0].size * len(args[A_log]), "")


def recurrence(n_matmuls):
    """n_matmuls matmuls of all states with A. The states (T + 1, B, S) are the first argument."""
    return lambda args: (n_matmuls * 2 * args[0][1:].size * args[0].shape[2], "")


OPERATIONS = {
    "linear_forward": matmul(1, 2),
    "linear_backward_input": matmul(1, 2),
    "linear_backward_weight": matmul(2, 0),
    "linear_transposed_forward": matmul(1, 2),
    "linear_transposed_backward": transposed_backward,
    "attention_forward": attention(2, 1, 3, 4),
    "attention_backward": attention(5, 4, 0, 5),
    "selective_scan_forward": scan(SCAN_FORWARD, 7),
    "selective_scan_backward": scan(SCAN_BACKWARD, 4),
    "linear_recurrence_forward": recurrence(1),
    "linear_recurrence_backward": recurrence(2),
}


def bytes_of(name, args):
    """Bytes that a call moves if it moves each array once."""
    arrays = [a for a in args if hasattr(a, "nbytes")]
    if "attention" in name:
        del arrays[1 if "backward" in name else 2]  # scratch, which stays in the cache
    if "scan" in name:
        del arrays[7 if "backward" in name else 2]
    sizes = [a.nbytes * (2 if name in IN_PLACE else 1) for a in arrays]
    if name.startswith("embedding"):  # of the table only the rows of the tokens
        sizes = [min(size, args[2 if "backward" in name else 0].nbytes) for size in sizes]
    return sum(sizes)


class Record:
    """Seconds spent, floor in seconds, and calls of each op, by label."""

    def __init__(self, dtype):
        self.rate, self.bandwidth = measure.matmul_rate(dtype=dtype), measure.bandwidth()
        self.float32_rate = measure.matmul_rate()
        self.clear()

    def clear(self):
        self.spent, self.floor, self.calls = defaultdict(float), defaultdict(float), defaultdict(int)

    def timed(self, name, function):
        """`function`, whose calls are recorded under `name`."""

        def run(*args):
            operations, label = OPERATIONS[name](args) if name in OPERATIONS else (0, "")
            n_bytes, started = bytes_of(name, args), time.perf_counter()
            result = function(*args)
            label = f"{name} {label}"
            self.spent[label] += time.perf_counter() - started
            rate = self.float32_rate if name.startswith(FLOAT32_ONLY) else self.rate
            self.floor[label] += max(operations / rate, n_bytes / self.bandwidth)
            self.calls[label] += 1
            return result

        return run


@contextlib.contextmanager
def recorded(trainer, record):
    """Within, all ops that a trainer's step calls by name, and its optimizer, are recorded."""
    from slm_np import ops
    from slm_np.ops import linear, loss

    halves = ("linear_backward_input", "linear_backward_weight")  # linear_backward and the fused head are these parts
    parts = ("linear_transposed_forward", "linear_transposed_backward", "softmax_cross_entropy_backward")
    others = [
        name
        for name in vars(ops)
        if name.endswith(("_forward", "_backward", "accumulate", "convert"))
        and name != "linear_backward"
        and not name.startswith("head")
    ]
    names = {linear: halves, loss: parts, ops: (*halves, *others)}
    untimed = [(module, name, getattr(module, name)) for module in names for name in dict.fromkeys(names[module])]
    update, weights = trainer.optimizer.step, trainer.model.parameters.weights
    adamw = record.timed("adamw", lambda *args: update(args[-1]))
    try:
        for module, name, function in untimed:
            setattr(module, name, record.timed(name, function))
        # The norm reads one buffer, AdamW reads four and writes four.
        trainer.optimizer.step = lambda rate: adamw(*[weights] * 9, rate)
        yield
    finally:
        for module, name, function in untimed:
            setattr(module, name, function)
        trainer.optimizer.step = update


def profile(title, trainer, seconds):
    """Print the table of a trainer's step, the largest gap first."""
    record = Record(trainer.config.dtype)
    with recorded(trainer, record):
        for _ in range(3):
            trainer.step()
        record.clear()
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds or steps < 3:
            trainer.step()
            steps += 1
        total = time.perf_counter() - started

    def line(label, calls, *spans):
        print(f"{label:<52}{calls:>6}" + "".join(f"{1e3 * span / steps:>10.2f}" for span in spans))

    print(
        f"\n{title}: {1e3 * total / steps:.1f} ms a step; "
        f"matmuls {record.rate / 1e9:.0f} GFLOP/s, copy {record.bandwidth / 1e9:.1f} GB/s"
    )
    print(f"{'op':<52}{'calls':>6}{'ms':>10}{'floor ms':>10}{'gap ms':>10}")
    spent, floor = record.spent, record.floor
    for label in sorted(spent, key=lambda label: spent[label] - floor[label], reverse=True):
        line(label, record.calls[label] // steps, spent[label], floor[label], spent[label] - floor[label])
    line("the rest: batches, Python", "", total - sum(spent.values()))
    line("sum", "", total, sum(floor.values()))
