"""Where somebody looked, in colour over the frames: a person's map, the model's gate, or the energy of its tokens.

C channels, T frames, H and W pixels, S pixels of a picture that is drawn; a map may have fewer of all than the frames.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from clip_common.heatmap import blend
from clip_common.runs import write_atomically
from clip_common.video import write_video

COLUMNS = 8
"""Frames of a contact sheet; of a longer clip as many are taken, evenly spread."""
LEAST = 112
"""Pixels of height below which frames are enlarged on a contact sheet."""
GAP, TEXT = 6, 12
"""Pixels between frames, and of a letter."""
INK = (60, 60, 60)


def resize_map(map_THW: ArrayLike | Tensor, *, frames: int, height: int, width: int) -> NDArray[np.float32]:
    """A map at another size, interpolated linearly in time and space, each value at the middle of what it covers.

    Raises:
        ValueError: Not (T, H, W).
    """
    tensor = map_THW.detach().cpu() if isinstance(map_THW, Tensor) else torch.tensor(np.asarray(map_THW))
    map_11THW = tensor.float()[None, None]
    if map_11THW.ndim != 5 or not map_11THW.numel():
        raise ValueError(f"expected a map (T, H, W), got the shape {tuple(map_11THW.shape[2:])}")
    size = (frames, height, width)
    return F.interpolate(map_11THW, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()


def compute_energy(tokens_CTHW: Tensor) -> NDArray[np.float32]:
    """Where a clip's tokens are strong: their mean square over channels, stretched to 0 to 1; (T, H, W) of the tokens.

    It is what the token loss compares with the map. Tokens that are equally strong everywhere say nothing: zeros.
    """
    energy_THW = tokens_CTHW.detach().float().square().mean(dim=0)
    low, high = energy_THW.aminmax()
    stretched_THW = (energy_THW - low) / (high - low) if high > low else torch.zeros_like(energy_THW)
    return stretched_THW.cpu().numpy()


def overlay(frames_THW3: NDArray[np.uint8], map_THW: ArrayLike | Tensor) -> NDArray[np.uint8]:
    """The frames under a map: as they are where it is 0, brightest where it is 1, whatever else is in the clip.

    Args:
        frames_THW3: RGB.
        map_THW: 0 to 1, of any size.
    """
    T, H, W, _ = frames_THW3.shape
    levels_THW = resize_map(map_THW, frames=T, height=H, width=W)
    return np.stack([blend(frame, level) for frame, level in zip(frames_THW3, levels_THW, strict=True)])


def write_sheet(
    frames_THW3: NDArray[np.uint8], maps: Mapping[str, ArrayLike | Tensor], path: Path, *, title: str = ""
) -> Path:
    """Save a PNG: frames in a row, and below them a row of overlays for each map, with the scale of the colours.

    Args:
        frames_THW3: RGB.
        maps: Name → map of 0 to 1, of any size, such as the clinician's and the model's; none leaves the video alone.
        path: Where the PNG goes.
        title: Over it all.
    """
    shown = _spread_evenly(len(frames_THW3))
    rows = {"video": frames_THW3} | {name: overlay(frames_THW3, map_THW) for name, map_THW in maps.items()}
    H, W = frames_THW3.shape[1:3]
    enlarged = max(1, -(-LEAST // H))
    H, W = H * enlarged, W * enlarged
    font = _load_font()
    left = GAP + max(round(font.getlength(name)) for name in rows) + 2 * GAP
    top = GAP + (round(1.8 * TEXT) if title else 0)
    across, down = left + len(shown) * (W + GAP), top + len(rows) * (H + GAP)
    bar = 12 + round(font.getlength("0.5")) + 4 * GAP
    width = max(across + (bar if maps else 0), left + round(font.getlength(title)) + GAP)
    sheet = Image.new("RGB", (width, down), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    pen.text((left, top // 2), title, fill=INK, font=font, anchor="lm")
    for row, (name, pictures) in enumerate(rows.items()):
        y = top + row * (H + GAP)
        pen.text((left - 2 * GAP, y + H // 2), name, fill=INK, font=font, anchor="rm")
        for column, index in enumerate(shown):
            picture = Image.fromarray(pictures[index])
            sheet.paste(picture.resize((W, H), Image.Resampling.BICUBIC), (left + column * (W + GAP), y))
    if maps:
        _draw_scale(sheet, x=across + GAP, top=top + H + GAP, height=down - top - H - 2 * GAP, font=font)
    with write_atomically(path) as temporary:
        sheet.save(temporary, format="png")
    return path


def write_overlay(frames_THW3: NDArray[np.uint8], map_THW: ArrayLike | Tensor, path: Path, *, fps: int) -> Path:
    """Save an MP4: the clip, and beside it the same under the map; an odd row or column at the edge is left out."""
    even_THW3 = frames_THW3[:, : frames_THW3.shape[1] // 2 * 2, : frames_THW3.shape[2] // 2 * 2]
    heated_THW3 = overlay(frames_THW3, map_THW)[:, : even_THW3.shape[1], : even_THW3.shape[2]]
    with write_atomically(path) as temporary:
        write_video(temporary, np.concatenate([even_THW3, heated_THW3], axis=2), fps=fps)
    return path


def _spread_evenly(frames: int) -> list[int]:
    """At most COLUMNS frames: the middles of parts of equal length."""
    count = min(COLUMNS, frames)
    return [(2 * part + 1) * frames // (2 * count) for part in range(count)]


def _load_font() -> ImageFont.FreeTypeFont:
    """matplotlib's own, as in the plots: Pillow's has no umlauts."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), TEXT)


def _draw_scale(sheet: Image.Image, *, x: int, top: int, height: int, font: ImageFont.FreeTypeFont) -> None:
    """The colours from 0, below, to 1, as they lie on a grey picture."""
    levels_H1 = np.linspace(1, 0, height)[:, None].repeat(12, axis=1)
    grey_H13 = np.full((height, 12, 3), 128, np.uint8)
    sheet.paste(Image.fromarray(blend(grey_H13, levels_H1)), (x, top))
    pen = ImageDraw.Draw(sheet)
    for level, anchor in ((1, "lt"), (0.5, "lm"), (0, "lb")):
        pen.text((x + 12 + GAP, top + (1 - level) * (height - 1)), f"{level}", fill=INK, font=font, anchor=anchor)
