"""Small image encoders of random weights, a configuration of three small encoders, and batches for it."""

from pathlib import Path
from typing import Any

import torch
from toy_models import make_samples

from clip_common.config import load_config
from edgeglass.config import Config
from edgeglass.models.alignment import MultimodalAlignmentModel

SIDE = 28


def save_vision_encoder(folder: Path, *, kind: str, seed: int = 0) -> Path:
    """A CLIPVisionModel or a Dinov2Model of 3 blocks over 4×4 patches."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"image_size": SIDE, "patch_size": 7}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "clip":
            config = transformers.CLIPVisionConfig(**sizes, intermediate_size=48, initializer_factor=4.0)
            model = transformers.CLIPVisionModel(config)
        else:
            model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2, initializer_range=0.3))
    model.save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP as open_clip saves it, whose shared width (10) is not that of its image tokens (16)."""
    from clip_common.backbones import load_clip, save_bundle

    vision = {"image_size": SIDE, "patch_size": 7, "width": 16, "layers": 2, "head_width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    torch.manual_seed(0)
    save_bundle(load_clip("small", model_config={"embed_dim": 10, "vision_cfg": vision, "text_cfg": text}), folder)
    return folder


def make_config(folders: Path, *overrides: str) -> Config:
    """A configuration of small encoders at widths 16, 8 and 4."""
    settings = [
        f"encoders.vision.name={folders / 'vision'}",
        f"encoders.vision.image_size={SIDE}",
        f"encoders.text.name={folders / 'text'}",
        f"encoders.audio.name={folders / 'audio'}",
        "mrl.width=16",
        "mrl.dims=[8,4]",
    ]
    perceivers = {"latents": 3, "layers": 1, "heads": 2, "ff_mult": 1}
    for modality in ("vision", "audio"):
        settings += [f"encoders.{modality}.perceiver.{name}={value}" for name, value in perceivers.items()]
    return load_config(Config, overrides=[*settings, *overrides])


TEXTS = ["a dog", "two red cats", "rain", "a bell rings", "a dog", "nothing"]


def make_inputs(model: MultimodalAlignmentModel, rows: int = 6, *, seed: int = 0) -> dict[str, Any]:
    """Inputs of `rows` samples by the argument of the model's forward; texts 0 and 4 are equal."""
    given: dict[str, Any] = {}
    if "image" in model.modalities:
        side = model.encoder_of("image").encoder.feed.preprocess.size
        pixels = torch.randn(rows, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        given["images"] = torch.nn.functional.interpolate(pixels, size=side)
    if "text" in model.modalities:
        given["texts"] = model.encoder_of("text").encoder.feed.batch(TEXTS[:rows])
    if "audio" in model.modalities:
        feed = model.encoder_of("audio").encoder.feed
        waves = [make_samples(seed + row, seconds=0.3 + 0.1 * row) for row in range(rows)]
        given["audio"] = feed.batch([feed.from_samples(torch.from_numpy(wave)) for wave in waves])
    return given
