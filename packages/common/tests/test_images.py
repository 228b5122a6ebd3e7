"""The reader of pictures: every mode and turn gives the pixels that numpy computes; damage is one line with a name."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_images import CASES, ORIENTATION, RGB, WIDE, swapping_profile, turn

from clip_common import images
from clip_common.errors import DataError
from clip_common.images import TooManyPixelsError, read_grey, read_image, read_mask, read_size, to_rgb

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
STORED = [case for case in CASES if case.suffix]


def named(case) -> str:
    return case.name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", STORED, ids=named)
def test_every_mode_is_read_as_the_table_says_with_each_turn_and_any_profile(case):
    for orientation in range(1, 9):
        for profile in (None, swapping_profile()):
            content = case.encode(orientation=orientation, profile=profile)
            picture = read_image(content)
            assert case.agrees(picture, orientation), (orientation, profile is not None)
            assert read_size(content) == picture.size
            with Image.open(BytesIO(content)) as opened:
                assert ("icc_profile" in opened.info) == (profile is not None)
                assert opened.mode == case.image.mode or case.name == "RGBX"  # Pillow opens it as RGB
                assert to_rgb(opened).tobytes() == picture.tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_mode_in_memory_is_converted_as_the_table_says_and_left_unchanged(case):
    for orientation in range(1, 9):
        picture = case.image.copy()
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture.info["exif"] = exif.tobytes()
        before = picture.tobytes(), picture.mode, picture.size, dict(picture.info)
        converted = to_rgb(picture)
        assert case.agrees(converted, orientation), orientation
        assert to_rgb(converted).tobytes() == converted.tobytes()  # not turned twice
        assert (picture.tobytes(), picture.mode, picture.size, dict(picture.info)) == before


@pytest.mark.parametrize("case", STORED, ids=named)
def test_a_picture_opened_by_its_path_is_converted_as_its_file_is_read(tmp_path, case):
    for orientation in range(1, 9):
        file = tmp_path / f"{orientation}{case.suffix}"
        file.write_bytes(case.encode(orientation=orientation))
        with Image.open(file) as opened:  # Pillow maps some of these files into memory
            assert case.agrees(to_rgb(opened), orientation), orientation
        assert case.agrees(read_image(file), orientation), orientation


def test_the_turns_of_the_table_are_those_of_the_exif_standard():
    # where the pixel stored first, at the top left, is seen: row, column of a picture stored with 2 x 3 pixels
    seen = {1: (0, 0), 2: (0, 2), 3: (1, 2), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (2, 1), 8: (2, 0)}
    stored = np.array([[9, 0, 0], [0, 0, 0]])
    for orientation, place in seen.items():
        turned = turn(stored, orientation)
        assert turned.shape == ((2, 3) if orientation < 5 else (3, 2))
        assert turned[place] == 9


def blocks() -> Image.Image:
    """48 x 32: red, green over blue, white; flat enough for lossy formats."""
    picture = Image.new("RGB", (48, 32), RED)
    picture.paste(GREEN, (24, 0, 48, 16))
    picture.paste(BLUE, (0, 16, 24, 32))
    picture.paste("white", (24, 16, 48, 32))
    return picture


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "WEBP", "AVIF", "PNG", "TIFF"])
def test_each_format_is_turned_once(kind):
    for orientation in range(1, 9):
        stream = BytesIO()
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options = {"quality": 95} if kind in ("JPEG", "MPO", "WEBP", "AVIF") else {}
        if kind == "MPO":
            options |= {"save_all": True, "append_images": [Image.new("RGB", (48, 32))]}
        blocks().save(stream, kind, exif=exif, **options)
        picture = read_image(stream.getvalue())
        difference = np.asarray(picture).astype(int) - turn(np.asarray(blocks()), orientation)
        assert np.abs(difference).mean() < 6
        assert read_size(stream.getvalue()) == picture.size


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_of_several_frames_is_read(kind):
    stream = BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(stream) as opened:
        assert opened.n_frames == 3
    assert np.abs(np.asarray(read_image(stream.getvalue())).astype(int) - RED).max() <= 2


def test_a_transparent_gif_is_white_there():
    stream = BytesIO()
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((0, 0), 0)
    picture.save(stream, "GIF", transparency=0)
    pixels = np.asarray(read_image(stream.getvalue()))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [0, 0, 255]


def test_a_cmyk_jpeg_and_a_grey_pgm_of_16_bits_and_a_float_pfm(tmp_path):
    stream = BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(stream, "JPEG")
    assert np.abs(np.asarray(read_image(stream.getvalue())).astype(int) - RED).max() <= 3
    pgm = b"P5 2 1 65535\n" + bytes([0x80, 0x00, 0xFF, 0xFF])
    assert np.asarray(read_image(pgm))[0].tolist() == [[128] * 3, [255] * 3]
    Image.fromarray(np.array([[0.5, 1.0]], dtype=np.float32)).save(tmp_path / "a.pfm")
    assert np.asarray(read_image(tmp_path / "a.pfm"))[0].tolist() == [[128] * 3, [255] * 3]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 5]], dtype=np.int32),
        np.array([[0, 70000]], dtype=np.int32),
        np.array([[0, np.nan]], dtype=np.float32),
        np.array([[0, np.inf]], dtype=np.float32),
        np.array([[-0.1, 0.5]], dtype=np.float32),
        np.array([[0, 65536]], dtype=np.float32),
    ],
    ids=str,
)
def test_grey_values_without_a_known_range_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert "expected 0 to 65535" in refused(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"the picture: not a readable image \(grey values"):
        to_rgb(Image.fromarray(values))


def refused(path: Path) -> str:
    """What is wrong with a file: the error's text after its path."""
    with pytest.raises(DataError) as error:
        read_image(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.isprintable()
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "jp2", "avif"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    whole = tmp_path / f"ganz, groß.{suffix}"
    Image.fromarray(noise).save(whole)
    assert read_image(whole).size == (64, 64)
    for share in (0.5, 0.9):
        half = tmp_path / f"halb, groß.{suffix}"
        half.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        assert refused(half).startswith(": not a readable image (")


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.png", "empty.png"):
        assert refused(tmp_path / name).startswith(": not a readable image (not an image: expected PNG, JPEG, ")
    assert refused(tmp_path / "gone.png") == ": no such file"
    assert refused(tmp_path / "folder.png") == ": a folder, where an image file is expected"
    (tmp_path / "locked.png").write_bytes(b"")
    (tmp_path / "locked.png").chmod(0)
    if not os.access(tmp_path / "locked.png", os.R_OK):  # root may read it
        assert refused(tmp_path / "locked.png") == ": cannot be read (Permission denied)"
    with pytest.raises(DataError, match=r"^shard.tar: a.png: not a readable image"):
        read_image(b"", name="shard.tar: a.png")


def test_a_name_that_is_not_utf8_is_printed(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin \xe9.png"))
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match="latin \N{REPLACEMENT CHARACTER}"):
        read_image(path)


def test_a_damaged_picture_that_a_user_opened_is_named(tmp_path):
    blocks().save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(DataError, match=r"a.png: not a readable image"):
        to_rgb(opened)


def test_postscript_is_not_handed_to_ghostscript(tmp_path):
    blocks().save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert "not an image" in refused(tmp_path / "a.png")


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert "decompression bomb" in refused(tmp_path / "a.png")
    with pytest.raises(DataError, match="decompression bomb"):
        read_size(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp"])
def test_a_picture_over_a_given_limit_is_refused_before_it_is_decoded(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    Image.new("RGB", (300, 200)).save(file)
    assert read_image(file, most_pixels=60_000).size == (300, 200)
    file.write_bytes(file.read_bytes()[:-40])  # damaged, which only decoding shows
    with pytest.raises(TooManyPixelsError, match=r"a\.\w+: 300 x 200 pixels, expected at most 59,999: scale it down"):
        read_image(file, most_pixels=59_999)


def test_a_picture_just_over_the_limit_is_read_without_a_warning_even_under_W_error(tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    code = (
        "import pathlib, sys; from clip_common.images import Image, read_image; Image.MAX_IMAGE_PIXELS = 600; "
        "print(read_image(pathlib.Path(sys.argv[1])).size)"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("(30, 30)\n", "")


BASES = {case.name: case.encode(orientation=6) for case in STORED}
for _kind in ("JPEG", "GIF", "WEBP", "BMP", "PPM", "JPEG2000"):
    _stream = BytesIO()
    Image.fromarray(RGB).save(_stream, _kind)
    BASES[_kind] = _stream.getvalue()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), base=st.sampled_from(sorted(BASES)))
@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_a_picture_or_one_line(monkeypatch, data, base):
    content = bytearray(BASES[base])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(1, len(content)))])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a damaged size must not fill the memory
    check_picture_or_line(content)


@settings(max_examples=100)
@given(content=st.binary(max_size=200))
@example(content=b"")
@example(content=b"\x89PNG\r\n\x1a\n")
@example(content=b"II*\x00\x08\x00\x00\x00")
@example(content=b"GIF89a\x01\x00\x01\x00\x00\x00\x00")
@pytest.mark.filterwarnings("ignore")
def test_random_bytes_are_one_line(content):
    check_picture_or_line(content)


def check_picture_or_line(content: bytes) -> None:
    for read in (read_image, read_size):
        try:
            read(content, name="a.png")
            message = "a.png: "
        except DataError as error:
            message = str(error)
        assert message.startswith("a.png: ")
        assert "\n" not in message
        assert "0x" not in message


def test_threads_read_what_one_reads():
    contents = [case.encode(orientation=orientation) for case in STORED for orientation in (1, 6)] * 4
    alone = [read_image(content).tobytes() for content in contents]
    with ThreadPoolExecutor(8) as pool:
        assert [picture.tobytes() for picture in pool.map(read_image, contents)] == alone


def test_grey_levels_are_those_of_the_rgb_picture(tmp_path):
    Image.fromarray(WIDE).save(tmp_path / "wide.png")
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    assert read_grey(tmp_path / "wide.png").tolist() == np.rint(WIDE / 257).tolist()
    luma = RGB @ [0.299, 0.587, 0.114]
    assert np.abs(read_grey(tmp_path / "rgb.png") - luma).max() <= 0.6
    assert read_grey(tmp_path / "rgb.png").dtype == np.uint8


def row(*colours: tuple[int, ...] | int, mode: str = "RGB") -> Image.Image:
    picture = Image.new(mode, (len(colours), 1))
    for x, colour in enumerate(colours):
        picture.putpixel((x, 0), colour)
    return picture


def test_a_mask_is_whatever_is_above_black(tmp_path):
    row(0, 1, 255, mode="L").save(tmp_path / "grey.png")
    row(0, 255, 255, mode="1").save(tmp_path / "bit.png")
    row((0, 0, 0), (0, 0, 1), BLUE).save(tmp_path / "colour.png")
    row((0, 0, 0, 255), (*RED, 0), (*RED, 255), mode="RGBA").save(tmp_path / "alpha.png")
    row((0, 0), (1, 0), (9, 255), mode="LA").save(tmp_path / "la.png")
    Image.fromarray(np.array([[0, 1, 65535]], dtype=np.uint16)).save(tmp_path / "wide.png")
    Image.fromarray(np.array([[0, 1e-3, 1]], dtype=np.float32)).save(tmp_path / "float.tif")
    palette = row(0, 1, 2, mode="P")
    palette.putpalette([0, 0, 0, 1, 0, 0, *RED])
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "clear.png", transparency=b"\xff\x00\x80")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 9
    for file in files:
        mask = read_mask(file, size=(3, 1))
        assert mask.dtype == bool
        assert mask.tolist() == [[False, True, True]], file.name


def test_a_jpeg_masks_blur_is_not_a_defect(tmp_path):
    drawn = np.zeros((64, 64), dtype=np.uint8)
    drawn[19:45, 21:43] = 255
    Image.fromarray(drawn).save(tmp_path / "a.jpg", quality=75)
    assert ((np.asarray(Image.open(tmp_path / "a.jpg")) > 0) != (drawn > 0)).any()  # the blur is there
    assert np.array_equal(read_mask(tmp_path / "a.jpg", size=(64, 64)), drawn > 0)


def test_a_mask_is_turned_and_one_of_another_size_is_named_with_both(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("L", (40, 20)).save(tmp_path / "m.png", exif=exif)
    assert read_mask(tmp_path / "m.png", size=(20, 40)).shape == (40, 20)
    with pytest.raises(DataError, match=r"m.png: a mask of 20x40 pixels, but its image has 40x20"):
        read_mask(tmp_path / "m.png", size=(40, 20))


def test_a_damaged_mask_is_named(tmp_path):
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"m.png: not a readable image"):
        read_mask(tmp_path / "m.png", size=(1, 1))
    with pytest.raises(DataError, match=r"gone.png: no such file"):
        read_mask(tmp_path / "gone.png", size=(1, 1))


def test_the_suffixes_name_formats_that_are_read():
    kinds = {Image.registered_extensions()[suffix] for suffix in images.IMAGE_SUFFIXES}
    assert kinds <= set(images.FORMATS)
