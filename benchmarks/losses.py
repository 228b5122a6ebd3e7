"""Contrastive losses without the B x B matrix: peak memory and time of forward and backward, beside open_clip's.

    uv run python benchmarks/losses.py             # about ten minutes on two cores
    uv run python benchmarks/losses.py --quick     # smaller batches: does it run, are the results equal

Rows: InfoNCE against open_clip.ClipLoss; SANW against the same loss with its matrices written out; Matryoshka at five
widths against one loss a width and against its widest alone; a batch of 32,768 alone. Memory is the peak above the
inputs, each arm in a process of its own; equality of the losses and gradients is asserted.
"""

import argparse
import json
from collections.abc import Callable

import open_clip
import torch
from _measure import PeakMemory, alternate, arm_in_own_process, report
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clip_common.losses import InfoNCE, Matryoshka
from clipse.training.losses import RetrievalLoss, SANWBandpass

SCALE = 14.0
WEIGHTING = SANWBandpass(m1=-0.05, m2=0.1, gamma=0.02)  # a band that random embeddings fall into: weights that act


def inputs(rows: int, width: int) -> tuple[Tensor, Tensor]:
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
    """The same loss, as it is written in research code: every matrix in full."""
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
    """What a Matryoshka loss usually does: the base loss once for each width."""
    return sum((open_clips(x[:, :width], y[:, :width]) for width in DIMS), open_clips(x, y))


ARMS = {
    "infonce": infonce,
    "open_clip": open_clips,
    "sanw": sanw,
    "dense_sanw": dense_sanw,
    "matryoshka": matryoshka,
    "one_by_one": one_by_one,
}


def step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    value = loss(x, y)
    return value, *torch.autograd.grad(value, (x, y))


def memory(name: str, rows: int, width: int) -> None:
    """One arm: warm up on a few rows, then measure; the gradients, as large as the inputs, are counted."""
    x, y = inputs(rows, width)
    step(ARMS[name], *inputs(64, width))
    with PeakMemory() as peak:
        step(ARMS[name], x, y)
    print(json.dumps({"mib": peak.mib}))


def peak(name: str, rows: int, width: int) -> float:
    return float(arm_in_own_process(__file__, name, "--rows", str(rows), "--width", str(width))["mib"])


def compared(label: str, ours: str, theirs: str, rows: int, width: int) -> dict[str, object]:
    x, y = inputs(rows, width)
    for one, other in zip(step(ARMS[ours], x, y), step(ARMS[theirs], x, y), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    timing = alternate(lambda: step(ARMS[ours], x, y), lambda: step(ARMS[theirs], x, y), warmup=1)
    ours_mib, theirs_mib = peak(ours, rows, width), peak(theirs, rows, width)
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
    large = 2048 if quick else 8192
    rows = [
        compared("InfoNCE / open_clip.ClipLoss", "infonce", "open_clip", large, 512),
        compared("SANW-Bandpass / matrices in full", "sanw", "dense_sanw", large, 512),
        compared("Matryoshka, 5 widths / one loss a width", "matryoshka", "one_by_one", 1024, 2048),
    ]
    x, y = inputs(1024, 2048)
    timing = alternate(lambda: step(matryoshka, x, y), lambda: step(infonce, x, y), warmup=2, pairs=15)
    rows.append(
        {
            "loss": "Matryoshka, 5 widths / our widest alone",
            "B": 1024,
            "D": 2048,
            "ours s": round(timing.ours_s, 3),
            "theirs s": round(timing.theirs_s, 3),
            "time ratio": round(timing.ratio, 2),
        }
    )
    huge = 4096 if quick else 32768
    rows.append({"loss": "InfoNCE alone", "B": huge, "D": 512, "ours MiB": round(peak("infonce", huge, 512))})
    report("losses", rows, note="forward and backward in float32; the peaks include the gradients of the inputs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int)
    arguments = parser.parse_args()
    if arguments.arm:
        memory(arguments.arm, arguments.rows, arguments.width)
    else:
        main(arguments.quick)
