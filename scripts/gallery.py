"""Draw the pictures of docs/world.md: one sheet for each kind of sample of the procedural world.

    uv run python scripts/gallery.py            # writes docs/pictures/*.png

Look at the pictures before you commit them.
"""

import argparse
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL.Image import Image

from clip_common.synthetic import (
    attention_maps,
    captions,
    keypoints,
    part_captions,
    person_captions,
    questions,
    render,
    render_part,
    render_person,
    render_sound,
    render_walk,
    sample_clip,
    sample_part,
    sample_person,
    sample_scene,
    sample_subject,
    watched_regions,
)
from clip_common.synthetic.parts import DEFECTS
from clip_common.synthetic.sounds import SAMPLE_RATE, in_reading_order

SIZE = 224
WRAP = 34


def show(axes: Axes, picture: Image | NDArray[Any], text: str = "", *, wrap: int = WRAP) -> None:
    """Show a picture with a few words below."""
    axes.imshow(picture)
    axes.axis("off")
    axes.text(0.5, -0.03, textwrap.fill(text, wrap), transform=axes.transAxes, ha="center", va="top", fontsize=8)


def make_sheet(rows: int, columns: int, *, height: float = 2.6) -> tuple[plt.Figure, np.ndarray]:
    """Return a figure with a grid of empty axes, one for each sample."""
    figure, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, height * rows), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.985, bottom=0.09, wspace=0.05, hspace=0.34)
    return figure, axes


def draw_scenes() -> plt.Figure:
    figure, axes = make_sheet(2, 4)
    for index, place in enumerate(axes.flat):
        scene = sample_scene(2, index)
        show(place, render(scene, size=SIZE), captions(scene)[0])
    return figure


def draw_parts() -> plt.Figure:
    figure, axes = make_sheet(3, 6, height=2.5)
    for column, defect in enumerate(DEFECTS):
        part = sample_part(5, 7 * column, defects=(defect,))
        picture, mask = render_part(part, size=SIZE)
        show(axes[0, column], render_part(part.flawless(), size=SIZE)[0], part_captions(part.flawless())[0])
        show(axes[1, column], picture, part_captions(part)[0])
        show(axes[2, column], mask.convert("RGB"), defect)
    return figure


def draw_sounds() -> plt.Figure:
    figure, axes = make_sheet(2, 4)
    for column in range(4):
        scene = sample_scene(8, column)
        heard = ", ".join(f"{thing.size} {thing.colour} {thing.kind}" for thing in in_reading_order(scene))
        show(axes[0, column], render(scene, size=SIZE))
        place = axes[1, column]
        place.specgram(render_sound(scene), NFFT=512, Fs=SAMPLE_RATE, noverlap=384, cmap="magma", vmin=-115)
        place.set_ylim(0, 5000)
        place.axis("off")
        place.text(0.5, -0.03, textwrap.fill(heard, WRAP), transform=place.transAxes, ha="center", va="top", fontsize=8)
    return figure


def draw_questions() -> plt.Figure:
    figure, axes = make_sheet(1, 4, height=3.2)
    figure.subplots_adjust(bottom=0.3)
    for index, place in enumerate(axes.flat):
        scene = sample_scene(9, index)
        by_type = {question.type: question for question in questions(scene)}
        lines = [f"{question.text}  {question.answer}" for question in list(by_type.values())[:4]]
        show(place, render(scene, size=SIZE))
        place.text(0.5, -0.03, "\n".join(lines), transform=place.transAxes, ha="center", va="top", fontsize=7.5)
    return figure


def draw_people() -> plt.Figure:
    figure, axes = make_sheet(1, 6, height=2.75)
    figure.subplots_adjust(bottom=0.24)
    for index, place in enumerate(axes.flat):
        person = sample_person(2, index)
        show(place, render_person(person, size=SIZE), person_captions(person)[0])
    return figure


def draw_walks() -> plt.Figure:
    figure, axes = make_sheet(3, 6, height=2.35)
    seen: dict[str, int] = {}
    for index in range(20):
        seen.setdefault(sample_subject(4, index).condition, index)
    for row, (condition, index) in enumerate(sorted(seen.items(), key=lambda item: item[0] != "normal")):
        clip = sample_clip(sample_subject(4, index), 0)
        frames = render_walk(clip, size=SIZE, fps=24, seconds=1.0)
        regions = watched_regions(clip, doctor=1)
        maps = attention_maps(keypoints(clip, size=SIZE, fps=24, seconds=1.0), regions, height=SIZE, width=SIZE)
        for column, frame in enumerate(range(0, 24, 4)):
            show(axes[row, column], frames[frame], f"{condition}; watched: {', '.join(regions)}" if column == 0 else "")
            axes[row, column].imshow(maps[frame], cmap="inferno", alpha=0.55 * maps[frame])
    return figure


SHEETS = {
    "scenes": draw_scenes,
    "parts": draw_parts,
    "sounds": draw_sounds,
    "questions": draw_questions,
    "people": draw_people,
    "walks": draw_walks,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs") / "pictures")
    options = parser.parse_args()
    mpl.use("Agg")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, draw in SHEETS.items():
        figure = draw()
        figure.savefig(options.folder / f"{name}.png", dpi=96, pil_kwargs={"optimize": True})
        print(options.folder / f"{name}.png")
