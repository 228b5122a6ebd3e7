"""Checkpoints as the released AA-CLIP code saves them, with random weights for the small CLIP of aaclip's tests."""

from pathlib import Path

import torch
from torch import nn

WIDTHS = {"text": 16, "image": 32, "shared": 24}


class SimpleAdapter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width, bias=False), nn.LeakyReLU())


class SimpleProj(nn.Module):
    def __init__(self, width, out, relu=True):
        super().__init__()
        linear = nn.Linear(width, out, bias=False)
        self.fc = nn.Sequential(linear, nn.LeakyReLU()) if relu else linear


def save_text(folder: Path, *, blocks: int = 3, name: str = "text_adapter.pth") -> nn.ModuleList:
    text = nn.ModuleList(
        [*(SimpleAdapter(WIDTHS["text"]) for _ in range(blocks)), SimpleProj(WIDTHS["text"], WIDTHS["shared"])]
    )
    optimizer = torch.optim.Adam(text.parameters()).state_dict()
    torch.save({"epoch": 5, "text_adapter": text.state_dict(), "text_optimizer": optimizer}, folder / name)
    return text


def save_image(
    folder: Path, *, blocks: int = 2, levels: int = 2, relu: bool = False, name: str = "image_adapter.pth"
) -> nn.ModuleDict:
    image = nn.ModuleDict(
        {
            "layer_adapters": nn.ModuleList(SimpleAdapter(WIDTHS["image"]) for _ in range(blocks)),
            "seg_proj": nn.ModuleList(SimpleProj(WIDTHS["image"], WIDTHS["shared"], relu=relu) for _ in range(levels)),
            "det_proj": SimpleProj(WIDTHS["image"], WIDTHS["shared"], relu=relu),
        }
    )
    optimizer = torch.optim.Adam(image.parameters()).state_dict()
    torch.save({"epoch": 20, "image_adapter": image.state_dict(), "image_optimizer": optimizer}, folder / name)
    return image
