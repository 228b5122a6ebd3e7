"""A training step of videoclip's full method (guided pooling, alignment, token loss) against a straightforward one.

    uv run python benchmarks/videoclip_step.py            # 8 frames: 224 px in batches of 4, 112 px in batches of 16
    uv run python benchmarks/videoclip_step.py --quick    # 32 px: a smoke test that compares results

A step is forward, loss, backward and AdamW. The straightforward implementation is typical research code: plain
`nn.Sequential`s, x·(1 + α·g) as a separate tensor, and a B×B matrix of similarities with its masks. Both arms start
from the same weights and see the same clips; losses, gradients and running statistics are compared before timing.
Memory is counted above weights and inputs, each arm in its own process. One thread.
"""

import argparse
import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from _measure import PeakMemory, alternate, arm_in_own_process, report
from torch import Tensor, nn
from torch.nn import functional as F

from videoclip.config import LossConfig, ModelConfig
from videoclip.models import VideoAttentionCLIP, normalise
from videoclip.models.alignment import GRID
from videoclip.training.losses import VideoClipLoss

CONFIG = ModelConfig(map_guided=True, map_guided_type="spatiotemporal", lambda_token=0.1)
FRAMES = 8
SHAPES = {"224 px, batch 4": (224, 4), "112 px, batch 16": (112, 16)}
QUICK = {"32 px, batch 4": (32, 4)}
WARM = (32, 4)
ARMS = ("ours", "straightforward")
TIME, MEMORY = 1.05, 0.8
"""Upper limits of the two ratios."""
EXACT, LOSS = 1e-8, 1e-5
"""Largest allowed difference of all results in float64, and of the losses in float32."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Losses = Callable[[], Tensor]


def inputs_of(size: int, batch: int) -> Inputs:
    """Return clips, maps with one blob each, labels, and subjects of two clips each."""
    generator = torch.Generator().manual_seed(0)
    video = normalise(torch.randint(0, 256, (batch, 3, FRAMES, size, size), generator=generator, dtype=torch.uint8))
    places_B2 = torch.rand(batch, 2, generator=generator)
    grid = torch.linspace(0, 1, size)
    rows_BH, columns_BW = ((-((grid - place[:, None]) ** 2) / 0.02).exp() for place in places_B2.T)
    blob_BHW = rows_BH[:, :, None] * columns_BW[:, None, :]
    maps = blob_BHW[:, None, None].expand(-1, 1, FRAMES, -1, -1).contiguous()
    return video, maps, torch.arange(batch) % 3, torch.arange(batch) // 2


def model_of(dtype: torch.dtype) -> VideoAttentionCLIP:
    torch.manual_seed(0)
    model = VideoAttentionCLIP(CONFIG).train().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that both arms compute the same
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight)  # of both signs
    return model


def in_float64(inputs: Inputs) -> Inputs:
    video, maps, labels, subjects = inputs
    return video.double(), maps.double(), labels, subjects


class Straightforward(nn.Module):
    """The same model, with the same parameter names, as plain sequences."""

    def __init__(self, model: VideoAttentionCLIP) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        guided: Any = self.model.video_encoder
        self.video, self.maps = plain(guided.encoder.trunk), plain(self.model.attn_encoder.trunk)
        self.alpha, self.video_head = guided.alpha, guided.encoder.head

    def loss(self, inputs: Inputs) -> Tensor:
        video, maps, labels, subjects = inputs
        x = self.video(video)
        a = F.interpolate(maps, size=x.shape[2:], mode="trilinear", align_corners=False)
        low, high = a.amin((1, 2, 3, 4), keepdim=True), a.amax((1, 2, 3, 4), keepdim=True)
        g = (a - low) / (high - low)
        gated = x * (1 + self.alpha * g)
        video_feature = self.video_head((g * gated).sum((2, 3, 4)) / g.sum((2, 3, 4)))
        seen, attended = (
            F.adaptive_avg_pool3d(tokens, GRID).flatten(2).transpose(1, 2).flatten(1) for tokens in (x, self.maps(maps))
        )
        v = F.normalize(self.model.video_projection(seen), dim=1)
        m = F.normalize(self.model.attn_projection(attended), dim=1)
        logits = self.model.logit_scale() * v @ m.T
        others = (subjects[:, None] == subjects) & ~torch.eye(len(subjects), dtype=torch.bool)
        logits = logits.masked_fill(others, float("-inf"))
        target = torch.arange(len(subjects))
        contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        energy, g = x.square().mean(1).flatten(1), g.flatten(1)
        energy, g = energy - energy.mean(1, keepdim=True), g - g.mean(1, keepdim=True)
        token = (1 - (energy * g).sum(1) / (energy.norm(dim=1) * g.norm(dim=1))).mean()
        return F.cross_entropy(self.model.classifier(video_feature), labels) + contrastive + CONFIG.lambda_token * token


def plain(trunk: Any) -> nn.Sequential:
    stem, conv, bn, _ = trunk
    return nn.Sequential(stem.conv, stem.bn, nn.ReLU(), nn.MaxPool3d(stem.pool), conv, bn, nn.ReLU())


def arm_of(arm: str, inputs: Inputs) -> tuple[nn.Module, Losses]:
    """Return an arm's module and a function that computes its loss."""
    model = model_of(inputs[0].dtype)
    if arm == "straightforward":
        straight = Straightforward(model)
        return straight.model, lambda: straight.loss(inputs)
    loss = VideoClipLoss(LossConfig(), token_config=CONFIG)
    video, maps, labels, subjects = inputs

    def ours() -> Tensor:
        output = model(video, maps)
        return loss(
            output,
            map_BCTHW=maps,
            label_B=labels,
            subject_B=subjects,
            regions_B=torch.arange(len(labels)),
            scale=model.logit_scale(),
        ).total

    return model, ours


def step_of(arm: str, inputs: Inputs) -> Callable[[], None]:
    model, loss = arm_of(arm, inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def results_of(arm: str, inputs: Inputs) -> dict[str, Tensor]:
    """Return the loss, gradients and running statistics of one step."""
    model, loss = arm_of(arm, inputs)
    value = loss()
    value.backward()
    # a bias before batch normalisation has no effect; its gradient is only rounding
    idle = tuple(f"trunk.{place}.bias" for place in ("0.conv", "1"))
    gradients = {
        name: part.grad for name, part in model.named_parameters() if part.grad is not None and not name.endswith(idle)
    }
    statistics = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    return {"loss": value.detach()} | gradients | statistics


def largest_difference(inputs: Inputs, *, only: str = "") -> float:
    """Return the largest relative difference between the arms, over results with `only` in their name."""
    ours, theirs = (results_of(arm, inputs) for arm in ARMS)
    assert ours.keys() == theirs.keys()
    return max(((ours[name] - theirs[name]).norm() / theirs[name].norm()).item() for name in ours if only in name)


def memory(arm: str, shape: tuple[int, int]) -> None:
    """Print the peak memory of one arm, after a warm-up on small clips."""
    step_of(arm, inputs_of(*WARM))()
    run = step_of(arm, inputs_of(*shape))
    with PeakMemory() as peak:
        run()
    print(json.dumps({"mib": peak.mib}))


def main() -> None:
    """Compare the arms' results, time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--arm", choices=ARMS, help="measure the peak memory of one arm and print it as JSON")
    parser.add_argument("--shape", choices=[*SHAPES, *QUICK], help="what --arm measures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shapes = QUICK if options.quick else SHAPES
    if options.arm:
        memory(options.arm, (SHAPES | QUICK)[options.shape])
        return
    exact = largest_difference(in_float64(inputs_of(*WARM)))
    assert exact <= EXACT, f"results differ by {exact} in float64"
    rows = []
    for name, shape in shapes.items():
        inputs = inputs_of(*shape)
        differ = largest_difference(inputs, only="loss")
        assert differ <= LOSS, f"losses differ by {differ}"
        timing = alternate(*(step_of(arm, inputs) for arm in ARMS), pairs=options.pairs, warmup=1)
        mine, other = (arm_in_own_process(__file__, arm, "--shape", name)["mib"] for arm in ARMS)
        rows.append(
            {
                "clips": name,
                "ours s": timing.ours_s,
                "straightforward s": timing.theirs_s,
                "time ratio": timing.ratio,
                "ours MiB": round(mine),
                "straightforward MiB": round(other),
                "memory ratio": mine / other,
                "losses differ by": differ,
            }
        )
    note = f"{FRAMES} frames, float32; in float64 all results agree to {exact:.0e}; bars: time {TIME}, memory {MEMORY}"
    report("videoclip_step", rows, note=note)


if __name__ == "__main__":
    main()
