"""The loss curve of a run as an image."""

import warnings
from pathlib import Path

from slm_np.formats import metrics


def loss_curve(directory, floor=None):
    """Write loss.png into the folder of a run: the loss of batches, and evaluations of both splits. Returns its path.

    floor: the entropy of the source in bits per byte, below which no model gets, or None. Raises ImportError without
    matplotlib, and OSError if the file cannot be written.
    """
    from matplotlib.figure import Figure  # pyplot would change the backend of the caller's notebook

    rows = metrics.read_metrics(directory)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row for row in rows if row.get("loss") is not None]
    evaluations = [row for row in rows if row.get("val_loss") is not None]
    axes.plot(
        [row["step"] for row in steps], [row["loss"] for row in steps], color="0.7", linewidth=0.8, label="batches"
    )
    axes.plot(
        [row["step"] for row in evaluations],
        [row.get("train_loss") for row in evaluations],
        marker=".",
        label="training",
    )
    axes.plot(
        [row["step"] for row in evaluations], [row["val_loss"] for row in evaluations], marker=".", label="validation"
    )
    if floor and evaluations and evaluations[-1].get("val_bpb"):
        axes.axhline(
            floor * evaluations[-1]["val_loss"] / evaluations[-1]["val_bpb"],
            color="k",
            linewidth=0.8,
            linestyle=":",
            label="floor",
        )
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.set_title(Path(directory).name, parse_math=False)  # a name may contain $
    axes.legend()
    axes.grid(alpha=0.3)
    path = Path(directory) / "loss.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font lacks a letter of the name
        figure.savefig(path, dpi=120)
    return path
