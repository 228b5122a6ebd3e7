"""Pictures of every kind become the RGB that a person sees; masks become bool; damage is one line with the path."""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from aaclip.data import DataError, read_image, read_mask

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ORIENTATION = 0x0112


def pixels(path) -> list[tuple[int, ...]]:
    image = read_image(path)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def row(*colours: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (len(colours), 1))
    for x, colour in enumerate(colours):
        image.putpixel((x, 0), colour)
    return image


def test_rgb_is_left_alone(tmp_path):
    row(RED, GREEN, (1, 2, 3)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == [RED, GREEN, (1, 2, 3)]


def test_grey_and_one_bit(tmp_path):
    row(0, 7, 255, mode="L").save(tmp_path / "grey.png")
    row(0, 255, mode="1").save(tmp_path / "bit.png")
    assert pixels(tmp_path / "grey.png") == [(0,) * 3, (7,) * 3, (255,) * 3]
    assert pixels(tmp_path / "bit.png") == [(0,) * 3, (255,) * 3]


@pytest.mark.filterwarnings("error")
def test_palettes_with_and_without_transparency(tmp_path):
    image = row(0, 1, mode="P")
    image.putpalette([*RED, *BLUE])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "some.png", transparency=b"\x00\x80")
    image.save(tmp_path / "one.gif", transparency=1)
    for name in ("plain.png", "some.png", "one.gif"):
        assert pixels(tmp_path / name) == [RED, BLUE]


def test_transparency_is_dropped_and_the_colour_under_it_stays(tmp_path):
    row((*RED, 0), (*GREEN, 128), mode="RGBA").save(tmp_path / "rgba.png")
    row((9, 0), (200, 255), mode="LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "rgba.png") == [RED, GREEN]
    assert pixels(tmp_path / "la.png") == [(9,) * 3, (200,) * 3]


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    for name in ("a.jpg", "a.tif"):
        assert np.abs(np.array(pixels(tmp_path / name)) - RED).max() <= 3


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path, name):
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert pixels(tmp_path / name) == [(0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]  # round(255 · value / 65535)


def test_sixteen_bits_of_the_other_byte_order(tmp_path):
    big = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257, 65535))
    big.save(tmp_path / "a.tif")
    assert Image.open(tmp_path / "a.tif").mode == "I;16B"
    assert pixels(tmp_path / "a.tif") == [(1,) * 3, (255,) * 3]


def test_integers_of_32_bits_hold_16(tmp_path):
    Image.fromarray(np.array([[0, 65535]], dtype=np.int32)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif") == [(0,) * 3, (255,) * 3]
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"b.tif: not a readable image \(grey values 0 to 70000: save it with 8 or 16"):
        read_image(tmp_path / "b.tif")


def test_floating_point_is_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a.tif: not a readable image \(floating-point pixels"):
        read_image(tmp_path / "a.tif")


# where the pixel stored first, at the top left, is seen: column, row of a picture stored with 3 x 2 pixels
@pytest.mark.parametrize(
    ("orientation", "size", "at"),
    [
        (1, (3, 2), (0, 0)),
        (2, (3, 2), (2, 0)),
        (3, (3, 2), (2, 1)),
        (4, (3, 2), (0, 1)),
        (5, (2, 3), (0, 0)),
        (6, (2, 3), (1, 0)),
        (7, (2, 3), (1, 2)),
        (8, (2, 3), (0, 2)),
    ],
)
def test_an_image_is_turned_as_its_exif_says(tmp_path, orientation, size, at):
    stored = Image.new("RGB", (3, 2))
    stored.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.size == size
    assert image.getpixel(at) == RED


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_one_pixel(tmp_path, suffix):
    Image.new("RGB", (1, 1), (200, 200, 200)).save(tmp_path / f"a.{suffix}")
    assert np.abs(np.array(pixels(tmp_path / f"a.{suffix}")) - 200).max() <= 2


def refused(path) -> str:
    with pytest.raises(DataError) as error:
        read_image(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_damaged_files_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "tif"):
        whole = tmp_path / f"ganz, groß.{suffix}"
        Image.fromarray(noise).save(whole)
        half = tmp_path / f"halb, groß.{suffix}"
        half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        assert refused(half).startswith(": not a readable image (")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    assert refused(tmp_path / "text.png") == ": not a readable image (not an image)"
    assert refused(tmp_path / "empty.png") == ": not a readable image (not an image)"
    assert refused(tmp_path / "gone.png") == ": no such file"
    (tmp_path / "folder.png").mkdir()
    assert "directory" in refused(tmp_path / "folder.png")


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert "decompression bomb" in refused(tmp_path / "a.png")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "bmp", "tif", "webp", "gif"]))
@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_a_data_error_or_a_picture(tmp_path, data, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {} if suffix in ("bmp", "gif") else {"exif": exif}
    noise = np.random.default_rng(0).integers(0, 256, size=(12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a damaged size must not fill the memory
        try:
            assert read_image(path).mode == "RGB"
        except DataError:
            refused(path)


def test_a_mask_is_whatever_is_above_black(tmp_path):
    row(0, 1, 255, mode="L").save(tmp_path / "grey.png")
    row(0, 255, 255, mode="1").save(tmp_path / "bit.png")
    row((0, 0, 0), (0, 0, 1), BLUE).save(tmp_path / "colour.png")
    row((0, 0, 0, 255), (*RED, 0), (*RED, 255), mode="RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(np.array([[0, 1, 65535]], dtype=np.uint16)).save(tmp_path / "wide.png")
    palette = row(0, 1, 2, mode="P")
    palette.putpalette([0, 0, 0, 1, 0, 0, *RED])
    palette.save(tmp_path / "palette.png")
    for name in ("grey", "bit", "colour", "alpha", "wide", "palette"):
        mask = read_mask(tmp_path / f"{name}.png", size=(3, 1))
        assert mask.dtype == bool
        assert mask.tolist() == [[False, True, True]], name


def test_a_jpeg_masks_blur_is_not_a_defect(tmp_path):
    drawn = np.zeros((64, 64), dtype=np.uint8)
    drawn[19:45, 21:43] = 255
    Image.fromarray(drawn).save(tmp_path / "a.jpg", quality=75)
    assert ((np.asarray(Image.open(tmp_path / "a.jpg")) > 0) != (drawn > 0)).any()  # the blur is there
    assert np.array_equal(read_mask(tmp_path / "a.jpg", size=(64, 64)), drawn > 0)


def test_a_mask_of_another_size_is_named_with_both(tmp_path):
    Image.new("L", (40, 20)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", size=(40, 20)).shape == (20, 40)
    with pytest.raises(DataError, match=r"m.png: a mask of 40x20 pixels, but its image has 20x40"):
        read_mask(tmp_path / "m.png", size=(20, 40))


def test_the_mask_of_a_turned_picture_has_the_size_that_is_seen(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (20, 40), 255).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", size=read_image(tmp_path / "a.jpg").size).all()
    Image.new("L", (40, 20)).save(tmp_path / "stored.png")
    with pytest.raises(DataError, match=r"a mask of 40x20 pixels, but its image has 20x40"):
        read_mask(tmp_path / "stored.png", size=read_image(tmp_path / "a.jpg").size)


def test_a_damaged_mask_is_named(tmp_path):
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"m.png: not a readable image"):
        read_mask(tmp_path / "m.png", size=(1, 1))
    with pytest.raises(DataError, match=r"gone.png: no such file"):
        read_mask(tmp_path / "gone.png", size=(1, 1))
