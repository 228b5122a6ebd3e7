"""The pictures of a run, of widths and of the gap: written whole, and showing what they are given."""

import math

import pytest
from PIL import Image

from clip_common.runs import Run
from edgeglass.report.plots import TopTen, WidthCurve, draw_gap, draw_run, draw_widths

BLUE, ORANGE, GREY = (0x3B, 0x6F, 0xB6), (0xD9, 0x79, 0x2B), (0x6B, 0x6B, 0x6B)


def colours(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, by file name, to look into."""
    from clip_common import plots

    figures, save = {}, plots.save_figure

    def kept(figure, path):
        figures[path.name] = figure
        return save(figure, path)

    for module in ("clip_common.plots", "edgeglass.report.plots"):
        monkeypatch.setattr(f"{module}.save_figure", kept)
    return figures


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def trained_run(tmp_path, *, pairs=("image-text", "audio-text"), validated=("i2t", "t2i", "ia2t", "ia(sum)2t")):
    run = Run.create("edgeglass", config_yaml="", name="läufe", root=tmp_path)
    for step in range(1, 101):
        row = {"phase": "align", "step": step, "train/loss": 8 / step}
        for pair in pairs:
            row |= {f"train/loss/{pair}": 4 / step, f"train/temperature/{pair}": 0.07 * math.exp(-step / 100)}
        run.metrics.append(row)
    if validated:
        recalls = {f"val/{side}/R@{k}": 0.5 for side in validated for k in (1, 10)}
        run.metrics.append({"phase": "align", "step": 100, "val/loss": 0.5, **recalls})
    return run


def test_a_run_gets_losses_retrieval_and_temperatures(tmp_path, drawn):
    run = trained_run(tmp_path)
    plots = draw_run(run)
    assert [plot.name for plot in plots] == ["loss.png", "pairs.png", "retrieval.png", "temperature.png"]
    assert {file.name for file in (run.path / "plots").iterdir()} == {plot.name for plot in plots}
    assert {BLUE, ORANGE} <= colours(plots[0])
    assert legend(drawn["pairs.png"].axes[0]) == ["image – text", "sound – text"]
    assert legend(drawn["temperature.png"].axes[0]) == ["image – text", "sound – text"]
    labels = ["image to text", "text to image", "image + sound to text", "image + sound (sum) to text"]
    assert legend(drawn["retrieval.png"].axes[0]) == labels


def test_a_run_without_validation_and_pairs_has_its_loss(tmp_path):
    assert [plot.name for plot in draw_run(trained_run(tmp_path, pairs=(), validated=()))] == ["loss.png"]


def test_widths_have_a_panel_per_pair_and_a_dashed_ceiling(tmp_path, drawn):
    table = [
        WidthCurve("image-text", "image to text", {512: 0.8, 64: 0.5, 128: 0.7}, ceiling=0.9),
        WidthCurve("image-text", "text to image", {64: 0.4, 128: 0.6, 512: 0.7}),
        WidthCurve("image+audio-text", "image + sound to text", {512: 0.95}, ceiling=1.0),
        WidthCurve("image+audio-text", "image + sound (sum) to text", {512: 0.85}, ceiling=1.0),
    ]
    path = draw_widths(tmp_path / "plots" / "widths.png", table)
    assert {BLUE, ORANGE} <= colours(path)
    assert [file.name for file in path.parent.iterdir()] == ["widths.png"]
    pair, fused = drawn["widths.png"].axes
    assert [pair.get_title(loc="left"), fused.get_title(loc="left")] == ["image – text", "image + sound – text"]
    assert (pair.get_xscale(), [label.get_text() for label in fused.get_xticklabels()]) == ("log", ["64", "128", "512"])
    assert [list(line.get_xdata()) for line in pair.lines if line.get_marker() == "o"] == [[64, 128, 512]] * 2
    assert list(pair.lines[0].get_ydata()) == [0.5, 0.7, 0.8]
    assert [line.get_ydata()[0] for line in pair.lines if line.get_linestyle() == "--"] == [0.9]
    assert [line.get_ydata()[0] for line in fused.lines if line.get_linestyle() == "--"] == [1.0]
    assert legend(pair) == ["image to text", "image to text, ceiling", "text to image"]
    assert legend(fused)[-1] == "ceiling"  # one line for both


def test_one_pair_is_one_panel(tmp_path, drawn):
    draw_widths(tmp_path / "one.png", [WidthCurve("image-text", "image to text", {32: 0.1})])
    assert len(drawn["one.png"].axes) == 1


def test_a_gap_is_drawn_beside_the_truth(tmp_path, drawn):
    truth = {"image": 0.5, "text": 0.25, "audio": 0.25}
    shares = {"as trained": {"image": 1.0, "text": 0.0, "audio": 0.0}, "centred": {**truth, "image": 0.45}}
    path = draw_gap(tmp_path / "gap.png", [TopTen("image", truth, shares), TopTen("audio", truth, shares)])
    assert {BLUE, ORANGE, GREY} <= colours(path)
    image, sound = drawn["gap.png"].axes
    assert [image.get_title(loc="left"), sound.get_title(loc="left")] == ["Queries: image", "Queries: sound"]
    heights = [[bar.get_height() for bar in bars] for bars in image.containers]
    assert heights == [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.45, 0.25, 0.25]]
    assert [text.get_text() for text in image.texts[3:6]] == ["100", "0", "0"]
    assert [label.get_text() for label in image.get_xticklabels()] == ["image", "text", "sound"]
    named = [text.get_text() for text in drawn["gap.png"].legends[0].get_texts()]
    assert named == ["truth", "as trained", "centred"]


@pytest.mark.parametrize("draw", [draw_widths, draw_gap])
def test_nothing_to_draw_is_refused(draw, tmp_path):
    with pytest.raises(ValueError, match="expected at least one"):
        draw(tmp_path / "none.png", [])
    assert not list(tmp_path.iterdir())
