"""Maps in colour over frames: a clinician's map, the model's gate, or the energy of its tokens.

C channels, T frames, H and W pixels; a map may have another size than the frames.
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
from videoclip.models.pooling import token_energy

COLUMNS = 8
"""Maximum number of frames on a contact sheet; a longer clip is sampled evenly."""
LEAST = 112
"""Height in pixels below which frames are enlarged on a contact sheet."""
GAP, TEXT = 6, 12
"""Pixels between frames, and height of letters in pixels."""
INK = (60, 60, 60)


def resize_map(map_THW: ArrayLike | Tensor, *, frames: int, height: int, width: int) -> NDArray[np.float32]:
    """Resize a map by linear interpolation in time and space; values are at the centres of their cells.

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
    """Return the energy of a clip's tokens: their mean square over channels, scaled to 0 to 1, (T, H, W).

    The token loss compares it with the map. Constant energy becomes zeros.
    """
    return stretch(token_energy(tokens_CTHW.detach()[None])[0, 0])


def stretch(map_THW: Tensor) -> NDArray[np.float32]:
    """Return a map scaled to 0 to 1 over the clip; a constant one becomes zeros."""
    low, high = map_THW.aminmax()
    stretched_THW = (map_THW - low) / (high - low) if high > low else torch.zeros_like(map_THW)
    return stretched_THW.float().cpu().numpy()


def overlay(frames_THW3: NDArray[np.uint8], map_THW: ArrayLike | Tensor) -> NDArray[np.uint8]:
    """Draw a map over frames: unchanged at 0, brightest at 1, independent of the rest of the clip.

    Args:
        frames_THW3: RGB.
        map_THW: Values from 0 to 1, of any size.
    """
    T, H, W, _ = frames_THW3.shape
    levels_THW = resize_map(map_THW, frames=T, height=H, width=W)
    return np.stack([blend(frame, level) for frame, level in zip(frames_THW3, levels_THW, strict=True)])


def write_sheet(
    frames_THW3: NDArray[np.uint8], maps: Mapping[str, ArrayLike | Tensor], path: Path, *, title: str = ""
) -> Path:
    """Write a PNG: a row of frames, and below it a row of overlays per map, with a colour scale.

    Args:
        frames_THW3: RGB.
        maps: Name → map of 0 to 1, of any size, such as the clinician's and the model's; may be empty.
        path: The PNG file.
        title: Text above the frames.
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
    """Write an MP4: the clip, and beside it the overlay; an odd last row or column of pixels is cut off."""
    even_THW3 = frames_THW3[:, : frames_THW3.shape[1] // 2 * 2, : frames_THW3.shape[2] // 2 * 2]
    heated_THW3 = overlay(frames_THW3, map_THW)[:, : even_THW3.shape[1], : even_THW3.shape[2]]
    with write_atomically(path) as temporary:
        write_video(temporary, np.concatenate([even_THW3, heated_THW3], axis=2), fps=fps)
    return path


def _spread_evenly(frames: int) -> list[int]:
    """Return indices of at most COLUMNS frames: the centres of parts of equal length."""
    count = min(COLUMNS, frames)
    return [(2 * part + 1) * frames // (2 * count) for part in range(count)]


def _load_font() -> ImageFont.FreeTypeFont:
    """Return matplotlib's font, as in the plots; Pillow's own lacks umlauts."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), TEXT)


def _draw_scale(sheet: Image.Image, *, x: int, top: int, height: int, font: ImageFont.FreeTypeFont) -> None:
    """Draw the colour scale on grey, from 0 at the bottom to 1 at the top."""
    levels_H1 = np.linspace(1, 0, height)[:, None].repeat(12, axis=1)
    grey_H13 = np.full((height, 12, 3), 128, np.uint8)
    sheet.paste(Image.fromarray(blend(grey_H13, levels_H1)), (x, top))
    pen = ImageDraw.Draw(sheet)
    for level, anchor in ((1, "lt"), (0.5, "lm"), (0, "lb")):
        pen.text((x + 12 + GAP, top + (1 - level) * (height - 1)), f"{level}", fill=INK, font=font, anchor=anchor)
