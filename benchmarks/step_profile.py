"""Where a training step's time goes, by op, beside each op's floor: the larger of operations / product rate and bytes / bandwidth."""

import contextlib
import time
from collections import defaultdict

import measure
from shapes import SCAN_BACKWARD, SCAN_FORWARD

EXACT = ("selective_scan", "linear_recurrence")  # never of bfloat16
IN_PLACE = (
    "silu_backward",
    "gelu_backward",
    "gelu_tanh_backward",
    "swiglu_backward",
)  # these write every array they read


def product(x, w):
    """(operations, label) of a call whose arguments x and w are what is multiplied by what."""
    return lambda args: (
        2 * args[x].shape[0] * args[w].size,
        f"{args[x].shape[0]} x {' x '.join(map(str, args[w].shape))}",
    )


def transposed_backward(args):
    return 4 * args[2].shape[0] * args[4].size, f"{args[2].shape[0]} x {args[4].shape[0]} x {args[4].shape[1]}"


def attention(n_products, lse, qkv, heads):
    """Of attention: so many products over keys no later than the query."""

    def count(args):
        rows, steps = args[lse].shape
        return n_products * 2 * rows * steps * (steps + 1) // 2 * (
            args[qkv].shape[1] // (args[heads] + 2 * args[heads + 1])
        ), ""

    return count


def scan(factor, rates):
    """Of the selective scan: its instructions for every state of every channel and token; `rates` (S, E) is the argument of that place."""
    return lambda args: (factor * args[0].size * len(args[rates]), "")


def recurrence(factor):
    """Of the linear recurrence: so many products of all states with A, states (T + 1, B, S) coming first."""
    return lambda args: (factor * 2 * args[0][1:].size * args[0].shape[2], "")


OPERATIONS = {
    "linear_forward": product(1, 2),
    "linear_backward_input": product(1, 2),
    "linear_backward_weight": product(2, 0),
    "linear_transposed_forward": product(1, 2),
    "linear_transposed_backward": transposed_backward,
    "attention_forward": attention(2, 1, 3, 4),
    "attention_backward": attention(5, 4, 0, 5),
    "selective_scan_forward": scan(SCAN_FORWARD, 7),
    "selective_scan_backward": scan(SCAN_BACKWARD, 4),
    "linear_recurrence_forward": recurrence(1),
    "linear_recurrence_backward": recurrence(2),
}


def bytes_of(name, args):
    """Bytes that a call has to move, if it moves each array once."""
    arrays = [a for a in args if hasattr(a, "nbytes")]
    if "attention" in name:
        del arrays[1 if "backward" in name else 2]  # its scratch stays in the cache
    if "scan" in name:
        del arrays[7 if "backward" in name else 2]
    sizes = [a.nbytes * (2 if name in IN_PLACE else 1) for a in arrays]
    if name.startswith("embedding"):  # of the table only the rows that stand in the text
        sizes = [min(size, args[2 if "backward" in name else 0].nbytes) for size in sizes]
    return sum(sizes)


class Record:
    """Seconds spent, floor in seconds, and calls of each op, by its label."""

    def __init__(self, dtype):
        self.rate, self.exact_rate, self.bandwidth = (
            measure.product_rate(dtype=dtype),
            measure.product_rate(),
            measure.bandwidth(),
        )
        self.clear()

    def clear(self):
        self.spent, self.floor, self.calls = defaultdict(float), defaultdict(float), defaultdict(int)

    def timed(self, name, function):
        """`function`, its calls put down under `name`."""

        def run(*args):
            flops, label = OPERATIONS[name](args) if name in OPERATIONS else (0, "")
            n_bytes, begun = bytes_of(name, args), time.perf_counter()
            result = function(*args)
            label = f"{name} {label}"
            self.spent[label] += time.perf_counter() - begun
            rate = self.exact_rate if name.startswith(EXACT) else self.rate
            self.floor[label] += max(flops / rate, n_bytes / self.bandwidth)
            self.calls[label] += 1
            return result

        return run


@contextlib.contextmanager
def recorded(trainer, record):
    """Within, the ops that a trainer's step calls are timed, wherever they are called by name, and its optimiser is."""
    from slm_np import ops
    from slm_np.ops import linear, loss

    halves = ("linear_backward_input", "linear_backward_weight")
    places = [
        (linear, halves),
        (ops, halves),
        (loss, ("linear_transposed_forward", "linear_transposed_backward", "softmax_cross_entropy_backward")),
        (
            ops,
            [
                n
                for n in vars(ops)
                if n.endswith(("_forward", "_backward", "accumulate", "convert"))
                and n != "linear_backward"
                and not n.startswith("head")
            ],
        ),
    ]
    untimed = [(module, name, getattr(module, name)) for module, names in places for name in names]
    update, weights = trainer.optimizer.step, trainer.model.parameters.weights
    adamw = record.timed("adamw", lambda *args: update(args[-1]))
    try:
        for module, name, function in untimed:
            setattr(module, name, record.timed(name, function))
        trainer.optimizer.step = lambda rate: adamw(
            *[weights] * 9, rate
        )  # the norm reads once; AdamW reads four buffers and writes four
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
        steps, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds or steps < 3:
            trainer.step()
            steps += 1
        total = time.perf_counter() - begun

    def line(label, calls, *spans):
        print(f"{label:<52}{calls:>6}" + "".join(f"{1e3 * span / steps:>10.2f}" for span in spans))

    print(
        f"\n{title}: {1e3 * total / steps:.1f} ms a step; products {record.rate / 1e9:.0f} GFLOP/s, copy {record.bandwidth / 1e9:.1f} GB/s"
    )
    print(f"{'op':<52}{'calls':>6}{'ms':>10}{'floor ms':>10}{'gap ms':>10}")
    spent, floor = record.spent, record.floor
    for label in sorted(spent, key=lambda k: spent[k] - floor[k], reverse=True):
        line(label, record.calls[label] // steps, spent[label], floor[label], spent[label] - floor[label])
    line("the rest: batches, Python", "", total - sum(spent.values()))
    line("sum", "", total, sum(floor.values()))
