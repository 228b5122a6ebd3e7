"""The pictures of a run, drawn from its metrics.csv."""

from pathlib import Path

from clip_common.plots import curves
from clip_common.runs import Run


def draw_run(run: Run) -> list[Path]:
    """Loss, validation retrieval, temperature, and a weighting's distribution of weights: PNGs in RUN/plots."""
    folder = run.folder("plots")
    metrics = run.path / "metrics.csv"
    logged = {name for row in run.metrics.rows() for name, value in row.items() if value}
    plots = [
        curves(
            metrics,
            {"train/loss": "training (each batch)", "val/loss": "validation"},
            folder / "loss.png",
            title="Contrastive loss",
            ylabel="nats",
        ),
        curves(
            metrics,
            {f"val/{side}/R@{k}": f"{label} R@{k}" for side, label in SIDES.items() for k in (1, 5, 10)},
            folder / "retrieval.png",
            title="Validation retrieval",
            ylabel="recall",
        ),
        curves(
            metrics, {"train/temperature": "temperature"}, folder / "temperature.png", title="Temperature", ylabel="τ"
        ),
    ]
    if "sanw/w_mean" in logged:
        plots.append(
            curves(
                metrics,
                {"sanw/w_p50": "median", "sanw/w_mean": "mean"},
                folder / "weights.png",
                title="Weights of true negatives (5th to 95th percentile shaded)",
                ylabel="weight",
                band=("sanw/w_p05", "sanw/w_p95"),
            )
        )
    return plots


SIDES = {"i2t": "image to text", "t2i": "text to image"}
