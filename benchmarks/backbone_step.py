"""Training step of ViT-B-32 on real captions: our towers and loss against open_clip's own model and ClipLoss.

    uv run python benchmarks/backbone_step.py            # batch 64; some minutes on two cores
    uv run python benchmarks/backbone_step.py --quick    # batch 8, two pairs: a smoke test

A step is forward, contrastive loss, backward and AdamW. Both arms start from the same (random) weights and see the same
images and captions; loss and gradients are compared before timing. Ours does less work: the text tower stops at the
longest caption of the batch instead of running all 77 positions, and the image tower's last block computes only the
class token, since no other output is used. Both arms use torch's AdamW as open_clip's training script does; one row
sets `fused=True` for ours only. Rows of a single tower time forward and backward without the optimizer.
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


def load_batch(folder: Path, bundle: Bundle, *, size: int) -> tuple[Tensor, Tensor]:
    """Return the first `size` images of a Karpathy set as pixels, and the tokens of each one's first caption."""
    entries = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["images"][:size]
    images = [bundle.preprocess(read_image(folder / "Images" / entry["filename"])) for entry in entries]
    tokens = bundle.tokenizer([entry["sentences"][0]["raw"] for entry in entries])
    assert isinstance(tokens, Tensor)
    return torch.stack(images), tokens


def copy_to_open_clip(bundle: Bundle) -> open_clip.CLIP:
    """Return open_clip's own model with the weights of `bundle`."""
    model = open_clip.CLIP(**{key: value for key, value in bundle.spec.config.items() if key != "custom_text"})
    state = bundle.image_tower.trunk.state_dict() | bundle.text_tower.trunk.state_dict()
    state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    model.load_state_dict(state | {"logit_scale": torch.tensor(bundle.logit_scale)})
    return model.train()


class Ours(nn.Module):
    """Our two towers with a trained temperature."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.image_tower, self.text_tower = bundle.image_tower.train(), bundle.text_tower.train()
        self.logit_scale = nn.Parameter(torch.tensor(bundle.logit_scale))

    def loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        return contrastive_loss(self.image_tower.pooled(images), self.text_tower(tokens), scale=self.logit_scale.exp())


def check_equal(ours: Ours, theirs: open_clip.CLIP, our_loss: Callable, their_loss: Callable) -> None:
    """Raise AssertionError unless both losses, and all gradients, agree up to rounding."""
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


def make_step(module: nn.Module, loss: Callable[[], Tensor], *, fused: bool | None = None) -> Callable[[], None]:
    """Return a function that runs one training step of `module`."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, weight_decay=0.01, fused=fused)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def make_tower_step(embed: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a function that runs `embed` forward and backward."""
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
        parser.error(f"{options.captions} does not exist: give a folder with dataset.json and Images/")
    size, pairs = (8, 2) if options.quick else (options.batch, options.pairs)

    bundle = load_clip(MODEL, pretrained="random")
    images, tokens = load_batch(options.captions, bundle, size=size)
    theirs, ours, clip_loss = copy_to_open_clip(bundle), Ours(bundle), open_clip.ClipLoss()
    lengths = (tokens.argmax(dim=-1) + 1).float()

    def their_loss() -> Tensor:
        return clip_loss(*theirs(images, tokens))

    def our_loss() -> Tensor:
        return ours.loss(images, tokens)

    check_equal(ours, theirs, our_loss, their_loss)
    arms = {
        "step": lambda: (make_step(ours, our_loss), make_step(theirs, their_loss)),
        "step, ours with fused AdamW": lambda: (make_step(ours, our_loss, fused=True), make_step(theirs, their_loss)),
        "text tower alone": lambda: (
            make_tower_step(lambda: ours.text_tower(tokens)),
            make_tower_step(lambda: theirs.encode_text(tokens)),
        ),
        "image tower alone": lambda: (
            make_tower_step(lambda: ours.image_tower.pooled(images)),
            make_tower_step(lambda: theirs.encode_image(images)),
        ),
    }
    rows = []
    for name, make_arms in arms.items():  # build one pair at a time: each optimizer holds 1.2 GB
        timing = alternate(*make_arms(), pairs=pairs, warmup=1)
        rows.append({"case": name, "ours s": timing.ours_s, "open_clip s": timing.theirs_s, "ratio": timing.ratio})
        print(f"{name}: {timing.ours_s:.2f} s, open_clip {timing.theirs_s:.2f} s, ratio {timing.ratio:.3f}", flush=True)
    longest, mean = int(lengths.max()), lengths.mean().item()
    captions = f"captions: {mean:.1f} tokens on average, at most {longest}"
    report("backbone_step", rows, note=f"{MODEL}, batch {size}, float32, {images.shape[-1]} px; {captions}")
