"""Contrastive losses without the B x B matrix: peak memory and time of forward and backward, against open_clip's.

    uv run python benchmarks/losses.py             # about ten minutes on two cores
    uv run python benchmarks/losses.py --quick     # smaller batches: a smoke test that compares results
    uv run python benchmarks/losses.py --busy 1 --busy 4    # InfoNCE at 4,096 quiet, and beside 1 and 4 busy processes

Rows: InfoNCE against open_clip.ClipLoss; SANW against the same loss with full matrices; Matryoshka at five widths
against one loss per width, and against our loss at full width alone; InfoNCE on a batch of 32,768, memory only. Memory
is the peak above the inputs, each arm in its own process. Losses and gradients are asserted to agree with the other
implementation.
"""

import argparse
import json
from collections.abc import Callable

import open_clip
import torch
from _measure import PeakMemory, alternate, arm_in_own_process, compare_busy, report
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clip_common.losses import InfoNCE, Matryoshka
from clipse.training.losses import RetrievalLoss, SANWBandpass

SCALE = 14.0
WEIGHTING = SANWBandpass(m1=-0.05, m2=0.1, gamma=0.02)  # random embeddings fall into this band, so the weights act


def make_inputs(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Return two (rows, width) tensors that require gradients, correlated row by row."""
    torch.manual_seed(0)
    x = torch.randn(rows, width)
    return x.requires_grad_(), (x.detach() + 2 * torch.randn(rows, width)).requires_grad_()


def infonce(x: Tensor, y: Tensor) -> Tensor:
    return InfoNCE()(x, y, scale=SCALE)


def open_clips(x: Tensor, y: Tensor) -> Tensor:
    return open_clip.ClipLoss()(normalize(x, dim=1), normalize(y, dim=1), torch.tensor(SCALE))


def sanw(x: Tensor, y: Tensor) -> Tensor:
    return RetrievalLoss(WEIGHTING)(x, y, scale=SCALE).loss


def dense_sanw(x: Tensor, y: Tensor) -> Tensor:
    """Compute the same loss as research code does, with full B x B matrices."""
    v, t = normalize(x, dim=1), normalize(y, dim=1)
    logits = SCALE * v @ t.T
    with torch.no_grad():
        log_weight = WEIGHTING.log_weight(v, t, v, t)
        off = ~torch.eye(len(x), dtype=torch.bool)
        weight = log_weight.exp() * off
        by_row = torch.where(off, log_weight - (weight.sum(1, keepdim=True) / (len(x) - 1)).log(), 0.0)
        by_column = torch.where(off, log_weight - (weight.sum(0, keepdim=True) / (len(x) - 1)).log(), 0.0)
    labels = torch.arange(len(x))
    return (cross_entropy(logits + by_row, labels) + cross_entropy((logits + by_column).T, labels)) / 2


DIMS = (1024, 512, 256, 128)


def matryoshka(x: Tensor, y: Tensor) -> Tensor:
    return Matryoshka(dims=DIMS)(x, y, scale=SCALE)


def one_by_one(x: Tensor, y: Tensor) -> Tensor:
    """Compute a Matryoshka loss in the usual way: the base loss once per width."""
    return sum((open_clips(x[:, :width], y[:, :width]) for width in DIMS), open_clips(x, y))


ARMS = {
    "infonce": infonce,
    "open_clip": open_clips,
    "sanw": sanw,
    "dense_sanw": dense_sanw,
    "matryoshka": matryoshka,
    "one_by_one": one_by_one,
}


def run_step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Return the loss and its gradients by `x` and `y`."""
    value = loss(x, y)
    return value, *torch.autograd.grad(value, (x, y))


def print_peak(name: str, rows: int, width: int) -> None:
    """Print the peak memory of one arm as JSON, after a warm-up on 64 rows; it includes the gradients of the inputs."""
    x, y = make_inputs(rows, width)
    run_step(ARMS[name], *make_inputs(64, width))
    with PeakMemory() as peak:
        run_step(ARMS[name], x, y)
    print(json.dumps({"mib": peak.mib}))


def measure_peak(name: str, rows: int, width: int) -> float:
    """Return the peak memory of one arm in MiB, measured in its own process."""
    return float(arm_in_own_process(__file__, name, "--rows", str(rows), "--width", str(width))["mib"])


def compare(label: str, ours: str, theirs: str, rows: int, width: int) -> dict[str, object]:
    """Return a row of the table, after asserting that both arms give the same loss and gradients."""
    x, y = make_inputs(rows, width)
    for one, other in zip(run_step(ARMS[ours], x, y), run_step(ARMS[theirs], x, y), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    timing = alternate(lambda: run_step(ARMS[ours], x, y), lambda: run_step(ARMS[theirs], x, y), warmup=1)
    ours_mib, theirs_mib = measure_peak(ours, rows, width), measure_peak(theirs, rows, width)
    return {
        "loss": label,
        "B": rows,
        "D": width,
        "ours s": round(timing.ours_s, 3),
        "theirs s": round(timing.theirs_s, 3),
        "time ratio": round(timing.ratio, 2),
        "ours MiB": round(ours_mib),
        "theirs MiB": round(theirs_mib),
        "memory ratio": round(ours_mib / theirs_mib, 2),
    }


def main(quick: bool) -> None:
    """Compare every loss, then measure a large batch alone."""
    large = 2048 if quick else 8192
    rows = [
        compare("InfoNCE / open_clip.ClipLoss", "infonce", "open_clip", large, 512),
        compare("SANW-Bandpass / full matrices", "sanw", "dense_sanw", large, 512),
        compare("Matryoshka, 5 widths / one loss per width", "matryoshka", "one_by_one", 1024, 2048),
    ]
    x, y = make_inputs(1024, 2048)
    timing = alternate(lambda: run_step(matryoshka, x, y), lambda: run_step(infonce, x, y), warmup=2, pairs=15)
    rows.append(
        {
            "loss": "Matryoshka, 5 widths / our full width alone",
            "B": 1024,
            "D": 2048,
            "ours s": round(timing.ours_s, 3),
            "theirs s": round(timing.theirs_s, 3),
            "time ratio": round(timing.ratio, 2),
        }
    )
    huge = 4096 if quick else 32768
    rows.append({"loss": "InfoNCE alone", "B": huge, "D": 512, "ours MiB": round(measure_peak("infonce", huge, 512))})
    report("losses", rows, note="forward and backward in float32; peaks include the gradients of the inputs")


def measure_busy(busy: list[int]) -> None:
    """Compare InfoNCE with the dense way on a quiet machine and beside busy processes."""
    x, y = make_inputs(4096, 512)
    rows = compare_busy(
        "InfoNCE, B = 4096 / open_clip.ClipLoss",
        lambda: run_step(infonce, x, y),
        lambda: run_step(open_clips, x, y),
        busy=busy,
    )
    report("losses_busy", rows, note="forward and backward in float32, D = 512; target: at least 0.8 kept")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--busy", type=int, action="append", metavar="N", help="beside N busy processes; repeatable")
    arguments = parser.parse_args()
    if arguments.arm:
        print_peak(arguments.arm, arguments.rows, arguments.width)
    elif arguments.busy:
        measure_busy(arguments.busy)
    else:
        main(arguments.quick)
