"""Memory of one step with a large batch, encoded whole and in mini-batches (`data.mini_batch`, GradCache).

    uv run python benchmarks/mini_batch.py             # ViT-B-32, batch 256; some minutes on two cores
    uv run python benchmarks/mini_batch.py --quick     # batch 64

Forward, loss and backward of random pixels and short texts. Each arm runs in its own process; peaks are above weights
and inputs. Losses and norms of the gradients are asserted to be equal.
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
    """Measure one step; with `mini_batch` equal to `batch` it is encoded whole."""
    bundle = load_clip(MODEL, pretrained="random", seed=0)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, bundle.image.spec.image_size, bundle.image.spec.image_size)
    tokens = bundle.tokenizer([f"photo number {index}" for index in range(batch)])
    assert isinstance(tokens, Tensor)
    towers: tuple[Callable[[Tensor], Tensor], ...] = (bundle.image_tower.pooled, bundle.text_tower)
    parameters = [*bundle.image_tower.parameters(), *bundle.text_tower.parameters()]

    def step(rows: int) -> float:
        inputs = images[:rows], tokens[:rows]
        if rows == mini_batch:
            loss = InfoNCE()(*(tower(rows_) for tower, rows_ in zip(towers, inputs, strict=True)), scale=10.0)
        else:
            loss = cached(InfoNCE(), mini_batch=mini_batch)(*zip(towers, inputs, strict=True), scale=10.0)
        loss.backward()
        return loss.item()

    step(min(8, mini_batch))
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.zero_()
    start = time.perf_counter()
    with PeakMemory() as peak:
        loss = step(batch)
    seconds = time.perf_counter() - start
    gradient = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))
    return {"peak MiB": peak.mib, "seconds": seconds, "loss": loss, "gradient": gradient}


def main() -> None:
    """Both arms and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(*map(int, options.arm.split(":")))))
        return
    batch, mini_batch = (64, 16) if options.quick else (256, 32)
    whole, parts = (arm_in_own_process(__file__, f"{batch}:{size}") for size in (batch, mini_batch))
    for name in ("loss", "gradient"):
        assert math.isclose(whole[name], parts[name], rel_tol=1e-4), (name, whole, parts)
    ratio = {"what": "ratio"} | {name: parts[name] / whole[name] for name in ("peak MiB", "seconds")}
    rows = [{"what": f"batch {batch} whole", **whole}, {"what": f"in mini-batches of {mini_batch}", **parts}, ratio]
    report("mini_batch", rows, note=f"{MODEL}; one step each: the seconds are a hint, the memory is the result")


if __name__ == "__main__":
    main()
