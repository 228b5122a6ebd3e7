"""PNGs of curves of one run, and of dots of several runs."""

import pytest
from PIL import Image

from clip_common.plots import Dots, draw_curves, draw_dots
from clip_common.runs import MetricsCsv


@pytest.fixture
def metrics(tmp_path):
    table = MetricsCsv(tmp_path / "metrics.csv")
    for phase in ("text", "image"):
        rows = [
            {"phase": phase, "step": step, "train/loss": 1 / step, "low": 0.1, "high": 2.0} for step in range(1, 101)
        ]
        table.extend([*rows, {"phase": phase, "step": 100, "val/loss": 0.1}])
    return table.path


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_curves_are_drawn_over_all_phases_with_a_band(metrics, tmp_path):
    path = tmp_path / "plots" / "loss.png"
    labels = {"train/loss": "training", "val/loss": "validation"}
    assert draw_curves(metrics, labels, path, band=("low", "high")) == path
    assert {(0x3B, 0x6F, 0xB6), (0xD9, 0x79, 0x2B)} <= colours(path)
    with Image.open(path) as image:
        assert image.size == (1080, 630)
    assert [file.name for file in path.parent.iterdir()] == ["loss.png"]


def test_a_column_that_is_missing_is_left_out(metrics, tmp_path):
    draw_curves(metrics, ["train/loss", "nowhere"], tmp_path / "some.png")
    with pytest.raises(ValueError, match="has none of the columns nowhere, no more"):
        draw_curves(metrics, ["nowhere", "no more"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_more_curves_than_colours_are_told_apart(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("clip_common.plots.save_figure", lambda figure, path: figures.append(figure))
    table = MetricsCsv(tmp_path / "metrics.csv")
    table.append({"step": 1} | {str(curve): curve / 7 for curve in range(7)})
    draw_curves(table.path, [str(curve) for curve in range(7)], tmp_path / "many.png")
    lines = figures[0].axes[0].lines
    assert lines[6].get_color() == lines[0].get_color()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 7


def test_dots_are_compared_where_there_is_something_to_compare(tmp_path):
    first = Dots("clip", values=[1.0, 2.0], centre=1.5, whisker=(1.0, 2.0), mark=0.5)
    second = Dots("sanw", values=[2.0], centre=2.0, whisker=None, against=(0.5, 0.6, 0.7))  # a skewed interval
    sizes = []
    for name, rows in (("one", [first]), ("two", [first, second])):
        path = draw_dots(rows, tmp_path / f"{name}.png", titles=("left", "right"), xlabels=("l", "r"))
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(960, 330), (1440, 405)]
    assert {(0x3B, 0x6F, 0xB6), (0x6B, 0x6B, 0x6B)} <= colours(tmp_path / "one.png")
    assert (0xD9, 0x79, 0x2B) in colours(tmp_path / "two.png")
