"""Peak memory of one step with a large batch: encoded whole, or in mini-batches (`data.mini_batch`, GradCache).

    uv run python benchmarks/mini_batch.py             # ViT-B-32, batch 256; some minutes on two cores
    uv run python benchmarks/mini_batch.py --quick     # batch 64

A step runs forward, loss and backward on random pixels and short texts. Each arm runs in its own process; peaks are
above weights, gradients and inputs. Losses and gradient norms are asserted to agree.
"""

import argparse
import json
import math
import time
from collections.abc import Callable

import torch
from _measure import PeakMemory, arm_in_own_process, report
from torch import Tensor

from clip_common.backbones import load_clip
from clip_common.losses import InfoNCE, cached

MODEL = "ViT-B-32"


def measure(batch: int, mini_batch: int) -> dict[str, float]:
    """Return peak MiB, seconds, loss and gradient norm of one step; `mini_batch` equal to `batch` encodes it whole."""
    bundle = load_clip(MODEL, pretrained="random", seed=0)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, bundle.image.spec.image_size, bundle.image.spec.image_size)
    tokens = bundle.tokenizer([f"photo number {index}" for index in range(batch)])
    assert isinstance(tokens, Tensor)
    towers: tuple[Callable[[Tensor], Tensor], ...] = (bundle.image_tower.pooled, bundle.text_tower)
    parameters = [*bundle.image_tower.parameters(), *bundle.text_tower.parameters()]

    def run_step(rows: int) -> float:
        inputs = images[:rows], tokens[:rows]
        if rows == mini_batch:
            loss = InfoNCE()(*(tower(inputs_) for tower, inputs_ in zip(towers, inputs, strict=True)), scale=10.0)
        else:
            loss = cached(InfoNCE(), mini_batch=mini_batch)(*zip(towers, inputs, strict=True), scale=10.0)
        loss.backward()
        return loss.item()

    run_step(min(8, mini_batch))  # warm-up; it also allocates the gradients
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.zero_()
    start = time.perf_counter()
    with PeakMemory() as peak:
        loss = run_step(batch)
    seconds = time.perf_counter() - start
    gradient = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))
    return {"peak MiB": peak.mib, "seconds": seconds, "loss": loss, "gradient": gradient}


def main() -> None:
    """Measure both arms and their ratio, or one arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", metavar="BATCH:MINI_BATCH", help="measure one arm and print it as JSON")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(*map(int, options.arm.split(":")))))
        return
    batch, mini_batch = (64, 16) if options.quick else (256, 32)
    whole, split = (arm_in_own_process(__file__, f"{batch}:{size}") for size in (batch, mini_batch))
    for name in ("loss", "gradient"):
        assert math.isclose(whole[name], split[name], rel_tol=1e-4), (name, whole, split)
    ratio = {"case": "ratio"} | {name: split[name] / whole[name] for name in ("peak MiB", "seconds")}
    rows = [
        {"case": f"batch {batch} whole", **whole},
        {"case": f"batch {batch} in mini-batches of {mini_batch}", **split},
        ratio,
    ]
    report("mini_batch", rows, note=f"{MODEL}; the peak is the result; seconds are of a single step, and rough")


if __name__ == "__main__":
    main()
