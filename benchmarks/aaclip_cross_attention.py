"""A training step of either stage with cross-attention, beside the same step without it and beside the fork's way.

    uv run python benchmarks/aaclip_cross_attention.py           # six blocks a tower at ViT-L's widths: some minutes
    uv run python benchmarks/aaclip_cross_attention.py --quick   # narrow, at 112 pixels: does it run, are outputs equal

A step is forward, backward and Adam on one image, in training mode: with more images of a class, ours shares the keys
and values of its context. The towers have six blocks of ViT-L's 24 and 12, so that cross-attention, which runs once,
weighs two to four times as much as in ViT-L. Time is that of the processor, because machines are shared.

The fork's way, inside our towers: the context is repeated for each prompt, which projects it to keys and values again;
every prompt has 77 tokens; the attention map is written out and its entries are dropped one by one. It is timed with
the fork's 16 prompts, and its outputs are compared with ours first.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from _measure import report
from torch import Tensor
from torch.nn.functional import dropout, normalize, pad

from aaclip.config import AdapterConfig, CrossAttentionConfig, HeadConfig, PromptConfig, SurgeryConfig
from aaclip.models import AnomalyModel
from aaclip.models.contexts import TextContexts
from aaclip.models.cross_attention import TINY, CrossAttention
from aaclip.models.maps import differences, probability_map
from aaclip.models.prompts import embed_classes, load_prompts
from aaclip.training.losses import segmentation_loss
from clip_common.backbones import load_clip, move

BLOCKS, TOKENS = 6, 77
NAME = "metal nut"
LARGE, QUICK = (1024, 768, 518), (128, 64, 112)
"""Widths of image and text, pixels a side."""
TIME, OUTPUTS = 1.15, 1e-4
"""The bars."""

Step = Callable[[], Tensor]
Attend = Callable[[Tensor], Tensor]


def model_of(image: int, text: int, size: int, **settings: Any) -> AnomalyModel:
    """Six blocks in either tower, random weights."""
    vision = {"image_size": size, "patch_size": 14, "width": image, "layers": BLOCKS, "head_width": 64}
    language = {"context_length": TOKENS, "vocab_size": 49408, "width": text, "heads": text // 64, "layers": BLOCKS}
    shape = {"embed_dim": text, "quick_gelu": True, "vision_cfg": vision, "text_cfg": language}
    torch.manual_seed(0)
    return AnomalyModel(
        load_clip("six blocks", pretrained="random", model_config=shape),
        levels=None,
        surgery=SurgeryConfig(),
        adapters=AdapterConfig(),
        heads=HeadConfig(),
        cross_attention=CrossAttentionConfig(enabled=True, **settings),
    ).train()


def fork(module: CrossAttention, x_BTF: Tensor, context_BNC: Tensor, *, length: int) -> Tensor:
    """Cross-attention with a context for each row, at full length, with its map."""
    whole_BTF = pad(x_BTF, (0, 0, 0, length - x_BTF.shape[1]))
    parts = module.q_proj(whole_BTF), module.k_proj(context_BNC), module.v_proj(context_BNC)
    query, key, value = (part.unflatten(-1, (module.heads, -1)).transpose(1, 2) for part in parts)
    map_BHTN = dropout(
        (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1), module.dropout, module.training
    )
    c_BTF = module.out_proj((map_BHTN @ value).transpose(1, 2).flatten(2))
    c_BTF = c_BTF * whole_BTF.norm(dim=-1, keepdim=True) / (c_BTF.norm(dim=-1, keepdim=True) + TINY)
    return (whole_BTF + module.weight * c_BTF)[:, : x_BTF.shape[1]]


class Stage:
    """Inputs and steps of a stage: `without`, `ours`, or `fork`."""

    def __init__(self, model: AnomalyModel, prompts: str) -> None:
        self.model = model
        self.prompts = load_prompts(PromptConfig(set=prompts))
        size = model.bundle.image.spec.image_size
        generator = torch.Generator().manual_seed(0)
        self.images_13SS = torch.randn(1, 3, size, size, generator=generator)
        self.masks_1SS = torch.zeros(1, size, size)
        self.masks_1SS[0, size // 4 : size // 2, size // 4 : size // 2] = 1
        self.text_1D2 = normalize(torch.randn(1, model.bundle.image.spec.embed_dim, 2, generator=generator), dim=1)
        self.context = TextContexts.of({NAME: model.read_text_context(self.prompts.list_all(NAME))}, [NAME])

    def levels_one(self, arm: str) -> list[Tensor]:
        """Stage 1: texts against the frozen patches of the image."""
        model = self.model
        patches = model.frozen_patches(self.images_13SS)
        context_1LD = patches[0]
        encode: Callable[[list[str]], Tensor] = model.encode_text
        if arm == "ours":
            encode = partial(model.encode_text, contexts_GLD=context_1LD)
        if arm == "fork":
            encode = partial(self._encode_as_fork, context_1LD=context_1LD)
        text_1D2 = embed_classes(encode, [NAME], self.prompts)
        return [differences(patches_1LD, text_1D2) for patches_1LD in patches]

    def _encode_as_fork(self, texts: list[str], context_1LD: Tensor) -> Tensor:
        module, model = self.model.text_cross_attn, self.model
        assert module is not None
        context_PLD = context_1LD.expand(len(texts), -1, -1)
        attend: Attend = partial(fork, module, context_BNC=context_PLD, length=TOKENS)
        tokens_PT = move(model.bundle.tokenizer(texts), model.device)
        encoded: Tensor = model.text_adapter(model.text_tower, tokens_PT, attend=attend)
        return encoded

    def levels_two(self, arm: str) -> list[Tensor]:
        """Stage 2: the image against a fixed embedding."""
        model = self.model
        if arm != "fork":
            return model.patch_evidence(self.images_13SS, self.text_1D2, self.context if arm == "ours" else None)
        assert model.image_cross_attn is not None
        length = (model.bundle.image.spec.image_size // 14) ** 2 + 1
        context_1NF = self.context.tokens_GNF  # 16 x 77 tokens
        attend: Attend = partial(fork, model.image_cross_attn, context_BNC=context_1NF, length=length)
        patches = model.image_adapter.patches(model.image_tower, self.images_13SS, attend=attend)
        embedded = model.image_adapter.embed_patches(patches)
        return [differences(patches_1LD, self.text_1D2) for patches_1LD in embedded]

    def step(self, number: int, arm: str) -> Step:
        """A training step of stage `number`."""
        model = self.model
        adapter = model.text_adapter if number == 1 else model.image_adapter
        cross = model.text_cross_attn if number == 1 else model.image_cross_attn
        assert cross is not None
        trained = [*adapter.parameters(), *(cross.parameters() if arm != "without" else ())]
        optimizer = torch.optim.Adam(trained, lr=1e-5)

        def run() -> Tensor:
            optimizer.zero_grad()
            size = self.masks_1SS.shape[-1]
            levels = self.levels_one(arm) if number == 1 else self.levels_two(arm)
            maps = [probability_map(level, size=size) for level in levels]
            loss = torch.stack([segmentation_loss(p_BHW, self.masks_1SS) for p_BHW in maps]).sum()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run


@torch.no_grad()
def largest_difference(stage: Stage) -> float:
    """Of the maps of both stages, between ours and the fork's way on the fork's contexts, without dropout."""
    stage.model.eval()
    arms = [(*stage.levels_one(arm), *stage.levels_two(arm)) for arm in ("ours", "fork")]
    stage.model.train()
    return max((one - other).abs().max().item() for one, other in zip(*arms, strict=True))


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = QUICK if options.quick else LARGE
    as_fork = Stage(model_of(*shape, padding="kept"), "compact")
    outputs = largest_difference(as_fork)
    assert outputs <= OUTPUTS, f"outputs differ by {outputs}"
    ours = model_of(*shape)
    rows = []
    for prompts in ("compact", "full"):
        stage = Stage(ours, prompts)
        for number in (1, 2):
            steps = {arm: stage.step(number, arm) for arm in ("without", "ours")}
            if prompts == "compact":
                steps["fork's way"] = as_fork.step(number, "fork")
            seconds = time_in_turn(steps, rounds=2 if options.quick else options.rounds)
            row: dict[str, float] = {"stage": number, "prompts": len(stage.prompts.list_all(NAME))}
            row["context tokens"] = stage.context.tokens_GNF.shape[1]
            row |= {f"{arm} s": statistics.median(spent) for arm, spent in seconds.items()}
            for arm in list(steps)[1:]:
                pairs = zip(seconds[arm], seconds["without"], strict=True)
                row[f"{arm} ratio"] = statistics.median(one / base for one, base in pairs)
            rows.append(row)
    image, text, size = shape
    note = f"{BLOCKS} blocks a tower of widths {image} and {text}, {(size // 14) ** 2 + 1} tokens, 1 image, float32"
    report("aaclip_cross_attention", rows, note=f"{note}; bar: ours {TIME} of without; outputs differ by {outputs:.1g}")


def time_in_turn(steps: Mapping[str, Step], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor for each step of each round, after one round to warm up; the order rotates."""
    seconds: dict[str, list[float]] = {arm: [] for arm in steps}
    names = list(steps)
    for number in range(rounds + 1):
        for arm in (*names[number % len(names) :], *names[: number % len(names)]):
            gc.collect()
            start = time.process_time()
            steps[arm]()
            if number:
                seconds[arm].append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
