"""Stage 2's image side at ViT-L's widths: our forward and backward beside the straightforward implementation.

    uv run python benchmarks/aaclip_step.py            # six blocks of ViT-L at 518 pixels, two images: some minutes
    uv run python benchmarks/aaclip_step.py --deep     # 24 blocks of width 256 at 518 pixels
    uv run python benchmarks/aaclip_step.py --quick    # narrow, at 112 pixels: does it run, are the outputs equal

The straightforward implementation is what research code does: softmax(QKᵀ)V written out, the attention maps kept and
returned, and CLIP's own weights with `requires_grad`, whose gradients are computed and discarded. Both arms have the
same random weights, images, texts and losses; features, maps, loss and the adapters' gradients are compared before
anything is timed. Peak memory is above the weights and inputs, each arm in a process of its own, so that the gradients
of CLIP's weights count.
"""

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _measure import PeakMemory, alternate, arm_in_own_process, report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from aaclip.config import AdapterConfig, HeadConfig, LossConfig, SurgeryConfig
from aaclip.models import AnomalyModel, Evidence
from aaclip.models.maps import probability_map
from aaclip.models.vision import ImageFeatures, get_image_trunk
from aaclip.training.losses import segmentation_loss
from clip_common.backbones import load_clip

IMAGES, ADAPTERS = 2, 6
LARGE, DEEP, QUICK, WARM = (1024, 518, 6), (256, 518, 24), (128, 112, 6), (64, 28, 6)
"""Width, pixels a side and blocks."""
BARS, DEEP_BARS, OUTPUTS = (0.75, 0.4), (0.5, 0.3), 1e-4
"""Of time and memory, and of the outputs."""


@dataclass(frozen=True)
class Inputs:
    """Two images, one normal and one with a defect, and the embeddings of their class."""

    images_B3HW: Tensor
    masks_BHW: Tensor
    anomalous_B: Tensor
    text_BD2: Tensor


def model_of(width: int, size: int, blocks: int) -> AnomalyModel:
    """Adapters behind the first six blocks, random weights; the text tower is not used and as small as can be."""
    vision = {"image_size": size, "patch_size": 14, "width": width, "layers": blocks, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    shape = {"embed_dim": 768, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    bundle = load_clip("blocks", pretrained="random", model_config=shape)
    torch.manual_seed(0)
    model = AnomalyModel(
        bundle,
        levels=None,
        surgery=SurgeryConfig(),
        adapters=AdapterConfig(image_blocks=ADAPTERS),
        heads=HeadConfig(detection="mean"),
    )
    model.text_adapter.requires_grad_(False)
    return model


def inputs_of(size: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    masks_BHW = torch.zeros(IMAGES, size, size)
    masks_BHW[1, size // 4 : size // 2, size // 4 : size // 2] = 1
    text_BD2 = normalize(torch.randn(IMAGES, 768, 2, generator=generator), dim=1)
    images_B3HW = torch.randn(IMAGES, 3, size, size, generator=generator)
    return Inputs(images_B3HW, masks_BHW, torch.tensor([0, 1]), text_BD2)


class Straightforward(nn.Module):
    """The same weights, run as research code does."""

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(get_image_trunk(model.image_tower)).requires_grad_(True)
        self.adapter = copy.deepcopy(model.image_adapter)

    def forward(self, images_B3HW: Tensor) -> tuple[ImageFeatures, list[Tensor]]:
        """Return what ours returns, and the attention maps (B, H, T, T) of all blocks."""
        adapter, maps, patches = self.adapter, [], []
        x_BTF = self.trunk.embed(images_B3HW)
        modules: list[Any] = [block.module for block in self.trunk.blocks]
        for number, block in enumerate(modules, start=1):
            attended_BTF, map_BHTT = attention(block.attn, block.ln_1(x_BTF))
            maps.append(map_BHTT)
            x_BTF = x_BTF + attended_BTF
            x_BTF = x_BTF + block.mlp(block.ln_2(x_BTF))
            if number <= len(adapter.layers):
                layer: Any = adapter.layers[number - 1]
                x_BTF = layer.mix(x_BTF, layer(x_BTF))
            if number in adapter.levels:
                patches.append(self.trunk.norm(x_BTF[:, 1:]))
        levels = [normalize(head(x), dim=-1) for head, x in zip(adapter.segmentation, patches, strict=True)]
        assert adapter.detection is not None
        detection_BD = normalize(adapter.detection(patches[-1]), dim=-1).mean(dim=1)
        return ImageFeatures(levels, detection_BD), maps


def attention(module: nn.MultiheadAttention, x_BTF: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(QKᵀ/√d)·V through the output map, and the softmax itself."""
    qkv_BTF3 = linear(x_BTF, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in qkv_BTF3)
    map_BHTT = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    return module.out_proj((map_BHTT @ value).transpose(1, 2).flatten(2)), map_BHTT


def maps_and_loss(features: ImageFeatures, inputs: Inputs) -> tuple[list[Tensor], Tensor]:
    """Stage 2's loss, as `aaclip.training.modules.ImageStage` has it, and its maps."""
    size = inputs.masks_BHW.shape[-1]
    evidence = Evidence.of(features, inputs.text_BD2)
    maps = [probability_map(level, size=size) for level in evidence.levels]
    logit_B = LossConfig().classification_scale * evidence.classification
    logits_B2 = torch.stack([torch.zeros_like(logit_B), logit_B], dim=1)
    loss = cross_entropy(logits_B2, inputs.anomalous_B)
    return maps, loss + torch.stack([segmentation_loss(p_BHW, inputs.masks_BHW) for p_BHW in maps]).sum()


Step = Callable[[], tuple[Tensor, ...]]


def step_of(arm: str, model: AnomalyModel, inputs: Inputs) -> tuple[Step, nn.Module]:
    """A function that runs forward and backward and gives all outputs, and the adapters with their gradients."""
    straight = Straightforward(model) if arm == "straightforward" else None
    whole = model if straight is None else straight

    def run() -> tuple[Tensor, ...]:
        whole.zero_grad()
        if straight is None:
            features = model.image_adapter(model.image_tower, inputs.images_B3HW)
        else:
            features, kept = straight(inputs.images_B3HW)
            assert len(kept) == len(straight.trunk.blocks)
        maps, loss = maps_and_loss(features, inputs)
        loss.backward()
        return tuple(output.detach() for output in (*features.levels, features.detection, *maps, loss))

    return run, model.image_adapter if straight is None else straight.adapter


def largest_difference(model: AnomalyModel, inputs: Inputs) -> tuple[float, float]:
    """Of the outputs, absolute; of the adapters' gradients, relative to the norm of each."""
    (ours, our_adapter), (theirs, their_adapter) = (step_of(arm, model, inputs) for arm in ARMS)
    outputs = max((one - other).abs().max().item() for one, other in zip(ours(), theirs(), strict=True))
    ours_P, theirs_P = ([part.grad for part in adapter.parameters()] for adapter in (our_adapter, their_adapter))
    return outputs, max(relative(one, other) for one, other in zip(ours_P, theirs_P, strict=True))


def relative(one: Tensor | None, other: Tensor | None) -> float:
    """How far a gradient is from the other, in norms of it; both are there."""
    assert one is not None
    assert other is not None
    return ((one - other).norm() / other.norm()).item()


ARMS = ("ours", "straightforward")


def memory(arm: str, shape: tuple[int, int, int]) -> None:
    """One arm: warm up on a narrow tower, then measure."""
    step_of(arm, model_of(*WARM), inputs_of(WARM[1]))[0]()
    run, _ = step_of(arm, model_of(*shape), inputs_of(shape[1]))
    with PeakMemory() as peak:
        run()
    print(json.dumps({"mib": peak.mib}))


def main() -> None:
    """Compare, time, weigh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--deep", action="store_true")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--arm", choices=ARMS, help="measure the peak memory of one arm and print it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = QUICK if options.quick else DEEP if options.deep else LARGE
    more = [flag for flag, given in (("--quick", options.quick), ("--deep", options.deep)) if given]
    if options.arm:
        memory(options.arm, shape)
        return
    model, inputs = model_of(*shape), inputs_of(shape[1])
    outputs, gradients = largest_difference(model, inputs)
    assert outputs <= OUTPUTS, f"outputs differ by {outputs}"
    assert gradients <= 1e-3, f"gradients differ by {gradients} of their norm"
    ours, theirs = (step_of(arm, model, inputs)[0] for arm in ARMS)
    timing = alternate(ours, theirs, pairs=2 if options.quick else options.pairs, warmup=1)
    mine, other = (arm_in_own_process(__file__, arm, *more)["mib"] for arm in ARMS)
    row = {
        "ours s": timing.ours_s,
        "straightforward s": timing.theirs_s,
        "time ratio": timing.ratio,
        "ours MiB": round(mine),
        "straightforward MiB": round(other),
        "memory ratio": mine / other,
        "outputs differ by": outputs,
        "gradients differ by": gradients,
    }
    width, size, blocks = shape
    time, weight = DEEP_BARS if options.deep else BARS
    note = f"{blocks} blocks of width {width}, {(size // 14) ** 2 + 1} tokens, {IMAGES} images, float32"
    name = "aaclip_step_deep" if options.deep else "aaclip_step"
    report(name, [row], note=f"{note}; bars: time {time}, memory {weight}, outputs {OUTPUTS:g}")


if __name__ == "__main__":
    main()
