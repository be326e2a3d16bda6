"""The loss curve of a run as a picture."""
from pathlib import Path

from slm_np import checkpoint


def loss_curve(directory, floor=None):
    """Write loss.png into the run: training loss, evaluations of both splits. Returns '; loss.png' or, without matplotlib, what to install."""
    try:
        import matplotlib
    except ImportError:
        return '; for a picture of the loss: pip install "slm_np[plot]"'
    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure
    rows = checkpoint.read_metrics(directory)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row for row in rows if row.get("loss") is not None]
    evaluations = [row for row in rows if row.get("val_loss") is not None]
    axes.plot([row["step"] for row in steps], [row["loss"] for row in steps], color="0.7", linewidth=0.8, label="batches")
    axes.plot([row["step"] for row in evaluations], [row["train_loss"] for row in evaluations], marker=".", label="training")
    axes.plot([row["step"] for row in evaluations], [row["val_loss"] for row in evaluations], marker=".", label="validation")
    if floor and evaluations and evaluations[-1]["val_bpb"]:
        axes.axhline(floor * evaluations[-1]["val_loss"] / evaluations[-1]["val_bpb"], color="k", linewidth=0.8, linestyle=":", label="floor")
    axes.set(xlabel="step", ylabel="loss, nats per token", title=Path(directory).name)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(Path(directory) / "loss.png", dpi=120)
    return f"; loss curve: {Path(directory) / 'loss.png'}"
