"""Training step of the tiny CLIP's image tower on a CPU: bf16 with float32 attention against float32 and autocast.

    uv run python benchmarks/cpu_autocast.py

Ours is `trainer.precision=bf16-mixed` on a CPU: bf16 autocast with attention in float32
(`clip_common.training.attention`). Each step runs 64 images of 64 x 64 pixels forward and backward; times are medians
of alternated pairs. A CPU without bf16 instructions gains nothing.
"""

from functools import partial

import torch
from _measure import alternate, report

from clip_common.backbones import load_clip
from clip_common.training.attention import float32_cpu_attention

ARCHITECTURE = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}


def main() -> None:
    """Time ours against float32 and against plain bf16 autocast."""
    tower = load_clip("tiny-like", pretrained="random", model_config=ARCHITECTURE, seed=0).image_tower.train()
    images = torch.randn(64, 3, 64, 64)

    def step(*, bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = tower.pooled(images)
        features.float().square().sum().backward()

    def ours() -> None:
        with float32_cpu_attention():
            step(bf16=True)

    rows = []
    for name, bf16 in (("float32", False), ("bf16 autocast", True)):
        timing = alternate(ours, partial(step, bf16=bf16))
        rows.append(
            {
                "against": name,
                "ours ms": 1000 * timing.ours_s,
                "theirs ms": 1000 * timing.theirs_s,
                "ratio": timing.ratio,
            }
        )
    report("cpu_autocast", rows, note="batch 64, 64 px; ours: bf16 matrix products, float32 attention")


if __name__ == "__main__":
    main()
