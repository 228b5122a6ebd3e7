"""A training step of ViT-B-32 on real captions: our towers and loss against open_clip's own model and ClipLoss.

    uv run python benchmarks/backbone_step.py            # batch 64; some minutes on two cores
    uv run python benchmarks/backbone_step.py --quick    # batch 8, two pairs: does it run

A step is forward, contrastive loss, backward, AdamW. Both arms start from the same (random) weights and see the same
images and captions; loss and gradients are compared before anything is timed. What makes the difference: the text tower
runs as far as the longest caption of the batch and not to all 77 positions, and only the class token, which alone is
read, goes through the image tower's last block. Both arms use torch's AdamW as open_clip's training script does; the
last row gives ours `fused=True` besides. The towers alone are forward and backward.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from _measure import alternate, report
from torch import Tensor, nn

from clip_common.backbones import Bundle, load_clip
from clip_common.images import read_image
from clip_common.losses import contrastive_loss

MODEL = "ViT-B-32"
CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data" / "captions"


def batch_of(folder: Path, bundle: Bundle, *, size: int) -> tuple[Tensor, Tensor]:
    """The first `size` images of a Karpathy set, each with its first caption."""
    entries = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["images"][:size]
    images = [bundle.preprocess(read_image(folder / "Images" / entry["filename"])) for entry in entries]
    tokens = bundle.tokenizer([entry["sentences"][0]["raw"] for entry in entries])
    assert isinstance(tokens, Tensor)
    return torch.stack(images), tokens


def same_weights(bundle: Bundle) -> open_clip.CLIP:
    """open_clip's own model with the weights of `bundle`."""
    model = open_clip.CLIP(**{key: value for key, value in bundle.spec.config.items() if key != "custom_text"})
    state = bundle.image_tower.trunk.state_dict() | bundle.text_tower.trunk.state_dict()
    state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    model.load_state_dict(state | {"logit_scale": torch.tensor(bundle.logit_scale)})
    return model.train()


class Ours(nn.Module):
    """Two towers and a temperature."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.image_tower, self.text_tower = bundle.image_tower.train(), bundle.text_tower.train()
        self.logit_scale = nn.Parameter(torch.tensor(bundle.logit_scale))

    def loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        return contrastive_loss(self.image_tower.pooled(images), self.text_tower(tokens), scale=self.logit_scale.exp())


def require_equal(ours: Ours, theirs: open_clip.CLIP, our_loss: Callable, their_loss: Callable) -> None:
    """Equal loss, and gradients equal up to rounding."""
    losses = []
    for compute in (our_loss, their_loss):
        loss = compute()
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        key = name.removeprefix("image_tower.trunk.").removeprefix("text_tower.trunk.").removeprefix("text.")
        expected = theirs_by_name.pop(key).grad
        assert (parameter.grad - expected).norm() <= 1e-3 * expected.norm() + 1e-7, name
    assert not theirs_by_name
    print(f"loss {losses[0].item():.6f} and {losses[1].item():.6f}; gradients agree")


def step(module: nn.Module, loss: Callable[[], Tensor], *, fused: bool | None = None) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, weight_decay=0.01, fused=fused)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def forward_and_backward(embed: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: embed().sum().backward()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "captions", type=Path, nargs="?", default=CAPTIONS, help="Karpathy folder: dataset.json, Images/"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not options.captions.exists():
        parser.error(f"{options.captions} is absent: give a folder with dataset.json and Images/")
    size, pairs = (8, 2) if options.quick else (options.batch, options.pairs)

    bundle = load_clip(MODEL, pretrained="random")
    images, tokens = batch_of(options.captions, bundle, size=size)
    theirs, ours, clip_loss = same_weights(bundle), Ours(bundle), open_clip.ClipLoss()
    lengths = (tokens.argmax(dim=-1) + 1).float()

    def their_loss() -> Tensor:
        return clip_loss(*theirs(images, tokens))

    def our_loss() -> Tensor:
        return ours.loss(images, tokens)

    require_equal(ours, theirs, our_loss, their_loss)
    arms = {
        "step": lambda: (step(ours, our_loss), step(theirs, their_loss)),
        "step, ours with fused AdamW": lambda: (step(ours, our_loss, fused=True), step(theirs, their_loss)),
        "text tower alone": lambda: (
            forward_and_backward(lambda: ours.text_tower(tokens)),
            forward_and_backward(lambda: theirs.encode_text(tokens)),
        ),
        "image tower alone": lambda: (
            forward_and_backward(lambda: ours.image_tower.pooled(images)),
            forward_and_backward(lambda: theirs.encode_image(images)),
        ),
    }
    rows = []
    for name, make in arms.items():  # made one after the other: each optimizer keeps 1.2 GB
        timing = alternate(*make(), pairs=pairs, warmup=1)
        rows.append({"what": name, "ours s": timing.ours_s, "open_clip s": timing.theirs_s, "ratio": timing.ratio})
        print(f"{name}: {timing.ours_s:.2f} s, open_clip {timing.theirs_s:.2f} s, ratio {timing.ratio:.3f}", flush=True)
    longest, mean = int(lengths.max()), lengths.mean().item()
    captions = f"captions of {mean:.1f} tokens, the longest {longest}"
    report("backbone_step", rows, note=f"{MODEL}, batch {size}, float32, {images.shape[-1]} px; {captions}")
