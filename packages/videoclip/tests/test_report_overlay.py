"""Maps over frames: nothing where nothing is, one scale for all, in the right place at the right time."""

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from clip_common.heatmap import COLOURS, OPAQUE
from clip_common.synthetic import write_walking
from videoclip.config import ModelConfig
from videoclip.models import VideoAttentionCLIP, normalise
from videoclip.report.overlay import GAP, compute_energy, overlay, resize_map, write_overlay, write_sheet
from videoclip.training.losses import token_loss


def clip(frames=6, height=120, width=160, seed=0):
    """Smooth pictures, which a codec keeps."""
    corners = np.random.default_rng(seed).integers(256, size=(frames, 3, 3, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in corners]
    )


def decoded(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_zero_leaves_the_frames_and_one_is_the_brightest_colour():
    frames = clip()
    assert np.array_equal(overlay(frames, np.zeros((1, 1, 1))), frames)
    expected = OPAQUE * 255 * np.array(colormaps[COLOURS](1.0)[:3]) + (1 - OPAQUE) * frames
    assert np.abs(overlay(frames, np.ones((2, 3, 4))) - expected).max() <= 0.5 + 1e-3


def test_the_scale_is_fixed():
    frames, map_THW = clip(), np.zeros((6, 120, 160))
    map_THW[:, :60] = 0.3
    alone = overlay(frames, map_THW)
    map_THW[:, 90:] = 1.0
    assert np.array_equal(overlay(frames, map_THW)[:, :60], alone[:, :60])


def test_a_map_is_resized_in_time_and_space_by_hand():
    map_THW = np.array([[[0.0, 1.0]], [[0.5, 0.5]]])  # two frames of one row of two
    found = resize_map(map_THW, frames=4, height=2, width=4)
    # middles of four parts lie at −¼, ¼, ¾ and 1¼ of two places: the ends hold, ¼ and ¾ are mixed
    columns = np.array([[0, 0.25, 0.75, 1], [0.5, 0.5, 0.5, 0.5]])
    expected = np.stack(
        [columns[0], 0.75 * columns[0] + 0.25 * columns[1], 0.25 * columns[0] + 0.75 * columns[1], columns[1]]
    )
    assert found == pytest.approx(expected[:, None].repeat(2, axis=1))


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from(["f2", "f4", "f8", "tensor"]),
)
def test_maps_of_all_sizes_and_kinds(shape, size, kind):
    map_THW = np.random.default_rng(0).random(shape)
    map_THW.flags.writeable = False
    given = torch.from_numpy(map_THW.copy()).requires_grad_() if kind == "tensor" else map_THW.astype(kind)
    found = resize_map(given, frames=size[0], height=size[1], width=size[2])
    assert found.shape == size
    assert found.min() >= map_THW.min() - 1e-3
    assert found.max() <= map_THW.max() + 1e-3
    if shape == size:
        assert found == pytest.approx(map_THW, abs=1e-3)


@pytest.mark.parametrize("shape", [(4, 4), (1, 2, 4, 4), (2, 0, 4)])
def test_what_is_no_map_is_told(shape):
    with pytest.raises(ValueError, match=r"expected a map \(T, H, W\), got the shape \("):
        overlay(clip(), np.zeros(shape))


def test_energy_by_hand():
    tokens = torch.zeros(2, 1, 1, 3)
    tokens[:, 0, 0, 1] = torch.tensor([1.0, -1.0])  # mean square 1
    tokens[:, 0, 0, 2] = torch.tensor([2.0, 0.0])  # mean square 2
    assert compute_energy(tokens).tolist() == [[[0, 0.5, 1]]]
    assert compute_energy(torch.full((2, 1, 2, 2), 3.0)).tolist() == [[[0, 0], [0, 0]]]
    assert compute_energy(tokens.bfloat16().requires_grad_()).tolist() == [[[0, 0.5, 1]]]


def test_energy_is_where_the_token_loss_finds_it():
    tokens = torch.randn(1, 64, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    found = torch.from_numpy(compute_energy(tokens[0]))
    loss = token_loss(tokens, found[None, None], valid_B=torch.tensor([True]), kind="mse")
    assert loss.item() == pytest.approx(0, abs=1e-10)


def boxes(path, *, rows, columns, height, width):
    """The pictures of a sheet without title, row by row, from the right: the scale is cut off by its own width."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        sheet = np.asarray(image).astype(int)
    ink = (sheet[GAP] < 250).any(axis=1)  # the first row of the first pictures
    left = int(np.flatnonzero(ink)[0])
    places = [
        (GAP + row * (height + GAP), left + column * (width + GAP)) for row in range(rows) for column in range(columns)
    ]
    return [sheet[y : y + height, x : x + width] for y, x in places]


def test_a_sheet_has_the_frames_above_their_overlays(tmp_path):
    frames = np.maximum(clip(), 1) // 2  # nowhere white
    maps = {"Ärztin": np.random.default_rng(0).random((6, 12, 16)), "gate": torch.zeros(2, 3, 4)}
    path = write_sheet(frames, maps, tmp_path / "läufe" / "sheet.png")
    found = boxes(path, rows=3, columns=6, height=120, width=160)
    expected = [*frames, *overlay(frames, maps["Ärztin"]), *frames]
    for picture, wanted in zip(found, expected, strict=True):
        assert np.array_equal(picture, wanted)
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_a_long_clip_shows_frames_all_over_it_and_a_small_one_is_enlarged(tmp_path):
    frames = np.zeros((50, 32, 20, 3), np.uint8)
    frames += 4 * np.arange(50, dtype=np.uint8)[:, None, None, None]
    path = write_sheet(frames, {"map": np.zeros((1, 1, 1))}, tmp_path / "sheet.png")
    found = boxes(path, rows=2, columns=8, height=128, width=80)
    shown = [int(picture[5, 5, 0]) // 4 for picture in found[:8]]
    assert shown == [3, 9, 15, 21, 28, 34, 40, 46]
    for picture, index in zip(found, shown * 2, strict=True):
        assert (picture == 4 * index).all()


def test_the_scale_runs_from_nothing_to_the_brightest(tmp_path):
    frames = np.full((1, 120, 120, 3), 30, np.uint8)
    with Image.open(write_sheet(frames, {"map": np.ones((1, 1, 1))}, tmp_path / "sheet.png")) as image:
        sheet = np.asarray(image).astype(int)
    last = int(np.flatnonzero((sheet[GAP] < 250).any(axis=1))[-1])  # the last column of the frame
    bar = sheet[2 * GAP + 120 : 2 * (GAP + 120), last + 2 * GAP + 4]
    top = OPAQUE * 255 * np.array(colormaps[COLOURS](1.0)[:3]) + (1 - OPAQUE) * 128
    assert bar[0] == pytest.approx(top, abs=3)
    assert bar[-1] == pytest.approx([128] * 3, abs=3)


def test_a_clip_without_maps_and_titles_of_any_length(tmp_path):
    frames = clip(1)
    bare, titled = (
        Image.open(write_sheet(frames, {}, tmp_path / f"{number}.png", title=title))
        for number, title in enumerate(("", "Gangbild 步态 " * 20))
    )
    assert titled.height > bare.height
    assert titled.width > 1000 > bare.width


def test_a_video_shows_the_clip_beside_its_overlay(tmp_path):
    frames, map_THW = clip(6, 61, 81), np.linspace(0, 1, 6)[:, None, None]
    path = write_overlay(frames, map_THW, tmp_path / "läufe" / "overlay.mp4", fps=6)
    found = decoded(path)
    assert found.shape == (6, 60, 160, 3)
    assert np.abs(found[:, :, :80].astype(int) - frames[:, :60, :80]).mean() < 4
    assert np.abs(found[:, :, 80:].astype(int) - overlay(frames, map_THW)[:, :60, :80]).mean() < 4
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 6
    assert [file.name for file in path.parent.iterdir()] == ["overlay.mp4"]


def test_walking_figures_glow_where_the_doctor_looked_and_the_model_did(tmp_path):
    root = write_walking(
        tmp_path / "walk", subjects=2, clips_per_subject=1, size=64, fps=8, folds=2, conditions=("dragging foot",)
    )
    frames = decoded(next((root / "videos").rglob("*.mp4")))
    map_THW = np.load(next((root / "maps").rglob("*.npy")))
    changed = np.abs(overlay(frames, map_THW).astype(int) - frames).sum(axis=3)
    assert (changed[map_THW > 0.9] > 50).mean() > 0.95
    assert (changed[map_THW < 1e-3] == 0).all()

    model = VideoAttentionCLIP(ModelConfig(map_guided=True)).eval()
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    with torch.inference_mode():
        output = model(normalise(video), torch.from_numpy(map_THW.astype(np.float32))[None, None])
    maps = {"doctor": map_THW, "gate": output.video_gate[0, 0], "energy": compute_energy(output.video_tokens[0])}
    assert np.corrcoef(resize_map(maps["gate"], frames=8, height=64, width=64).ravel(), map_THW.ravel())[0, 1] > 0.95
    with Image.open(write_sheet(frames, maps, tmp_path / "sheet.png", title="subject_00")) as image:
        assert image.height > 4 * 128
