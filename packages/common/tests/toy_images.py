"""Pictures of every mode, and the RGB pixels that they must give, computed with numpy instead of Pillow.

Each is stored with every EXIF orientation, and with an ICC profile that would swap red and blue if it were applied.
"""

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 5, 7
ORIENTATION = 0x0112
_rng = np.random.default_rng(0)
RGB = _rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = _rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA = _rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ALPHA[0, :2] = 0, 255
WIDE = _rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
WIDE[0, :5] = 0, 128, 129, 256, 65535
INDEX = _rng.integers(0, 4, (HEIGHT, WIDTH), dtype=np.uint8)
PALETTE = np.array([[255, 0, 0], [0, 0, 255], [10, 200, 30], [7, 7, 7]], dtype=np.uint8)
PALETTE_ALPHA = np.array([255, 0, 100, 254], dtype=np.uint8)


@dataclass(frozen=True)
class Case:
    """One picture.

    Attributes:
        name: Mode, and what is special.
        image: As it is stored, unturned.
        rgb: What it must give, unturned: (H, W, 3) uint8.
        suffix: Of a lossless file that keeps mode and EXIF; empty where no such file is written.
        tolerance: Largest difference in grey levels that rounding explains.
    """

    name: str
    image: Image.Image
    rgb: np.ndarray
    suffix: str
    tolerance: int = 0

    def encode(self, *, orientation: int = 1, profile: bytes | None = None) -> bytes:
        """The bytes of a file."""
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stream = BytesIO()
        extra = {} if profile is None else {"icc_profile": profile}
        if "transparency" in self.image.info:
            extra["transparency"] = self.image.info["transparency"]
        self.image.save(stream, Image.registered_extensions()[self.suffix], exif=exif, **extra)
        return stream.getvalue()

    def expected(self, orientation: int = 1) -> np.ndarray:
        """(H, W, 3), turned."""
        return turn(self.rgb, orientation)

    def agrees(self, image: Image.Image, orientation: int = 1) -> bool:
        """Whether a picture that was read is plain RGB with the expected pixels."""
        expected = self.expected(orientation).astype(int)
        got = np.asarray(image).astype(int)
        same = got.shape == expected.shape and np.abs(got - expected).max() <= self.tolerance
        return image.mode == "RGB" and not image.info and bool(same)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rows and columns as the EXIF standard defines them: what the stored row 0 and column 0 are seen as."""
    swapped = pixels.swapaxes(0, 1)
    return {
        1: pixels,  # top, left
        2: pixels[:, ::-1],  # top, right
        3: pixels[::-1, ::-1],  # bottom, right
        4: pixels[::-1],  # bottom, left
        5: swapped,  # left, top
        6: swapped[:, ::-1],  # right, top
        7: swapped[::-1, ::-1],  # right, bottom
        8: swapped[::-1],  # left, bottom
    }[orientation]


def swapping_profile() -> bytes:
    """A profile of sRGB with the red and blue primaries exchanged."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return plain.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Straight colour over white."""
    share = alpha.astype(float)[..., None] / 255
    return np.floor(colour * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def three(grey: np.ndarray) -> np.ndarray:
    """Grey as RGB."""
    return np.repeat(grey[..., None], 3, axis=2)


def narrow(values: np.ndarray, top: float) -> np.ndarray:
    """0..top as 0..255, rounded."""
    return three(np.rint(values.astype(float) * 255 / top).astype(np.uint8))


def with_alpha(colour: Image.Image, alpha: np.ndarray, mode: str) -> Image.Image:
    """A picture of a mode with alpha."""
    return Image.merge(mode, [*colour.split(), Image.fromarray(alpha)])


def paletted(transparency: bytes | int | None = None) -> Image.Image:
    """A picture with a palette."""
    image = Image.frombytes("P", (WIDTH, HEIGHT), INDEX.tobytes())
    image.putpalette(PALETTE.ravel().tolist())
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def marked(image: Image.Image, transparency: object) -> Image.Image:
    """A picture with one colour that is transparent."""
    image.info["transparency"] = transparency
    return image


def wide(mode: str) -> Image.Image:
    """16-bit grey in one of Pillow's modes."""
    big = mode == "I;16B" or (mode == "I;16N" and np.little_endian is False)
    return Image.frombytes(mode, (WIDTH, HEIGHT), WIDE.astype(">u2" if big else "<u2").tobytes())


def cases() -> Iterator[Case]:
    """Every mode."""
    rgb, grey = Image.fromarray(RGB), Image.fromarray(GREY)
    yield Case("1", Image.fromarray(GREY > 127), three(np.where(GREY > 127, 255, 0).astype(np.uint8)), ".png")
    yield Case("L", grey, three(GREY), ".png")
    yield Case("L tiff", grey, three(GREY), ".tif")
    clear = np.equal(GREY, GREY[2, 2])
    yield Case("L tRNS", marked(grey.copy(), int(GREY[2, 2])), three(np.where(clear, 255, GREY)), ".png")
    la = with_alpha(grey, ALPHA, "LA")
    yield Case("LA", la, on_white(three(GREY), ALPHA), ".png")
    yield Case("La", la.convert("La"), on_white(three(GREY), ALPHA), "", tolerance=1)
    yield Case("P", paletted(), PALETTE[INDEX], ".png")
    yield Case("P tRNS", paletted(PALETTE_ALPHA.tobytes()), on_white(PALETTE[INDEX], PALETTE_ALPHA[INDEX]), ".png")
    one = on_white(PALETTE[INDEX], np.where(INDEX == 2, 0, 255).astype(np.uint8))
    yield Case("P one transparent", paletted(2), one, ".png")
    pa = Image.merge("PA", [paletted(), Image.fromarray(ALPHA)])
    pa.putpalette(PALETTE.ravel().tolist())
    yield Case("PA", pa, on_white(PALETTE[INDEX], ALPHA), ".tif")
    yield Case("RGB", rgb, RGB, ".png")
    yield Case("RGB tiff", rgb, RGB, ".tif")
    clear = np.equal(RGB, RGB[3, 3]).all(axis=2)
    yield Case("RGB tRNS", marked(rgb.copy(), tuple(RGB[3, 3].tolist())), np.where(clear[..., None], 255, RGB), ".png")
    rgba = with_alpha(rgb, ALPHA, "RGBA")
    yield Case("RGBA", rgba, on_white(RGB, ALPHA), ".png")
    yield Case("RGBA tiff", rgba, on_white(RGB, ALPHA), ".tif")
    yield Case("RGBa", rgba.convert("RGBa"), on_white(RGB, ALPHA), "", tolerance=1)
    yield Case("RGBX", with_alpha(rgb, ALPHA, "RGBX"), RGB, ".tif")
    yield from _colour_spaces()
    for mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        suffix = {"I;16": ".png", "I;16B": ".tif"}.get(mode, "")
        yield Case(mode, wide(mode), narrow(WIDE, 65535), suffix)
    yield Case("I;16 tiff", wide("I;16"), narrow(WIDE, 65535), ".tif")
    clear = three(np.equal(WIDE, WIDE[1, 1]))
    yield Case("I;16 tRNS", marked(wide("I;16"), int(WIDE[1, 1])), np.where(clear, 255, narrow(WIDE, 65535)), "")
    yield Case("I", Image.fromarray(WIDE.astype(np.int32)), narrow(WIDE, 65535), ".tif")
    for top in (1, 255, 65535):
        values = (WIDE / 65535 * top).astype(np.float32)
        yield Case(f"F to {top}", Image.fromarray(values), narrow(values, top), ".tif")


def _colour_spaces() -> Iterator[Case]:
    inks = _rng.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    shares = 1 - inks / 255
    yield Case(
        "CMYK",
        Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()),
        np.rint(255 * shares[..., :3] * shares[..., 3:]).astype(np.uint8),
        ".tif",
        tolerance=1,
    )
    y, cb, cr = np.moveaxis(RGB.astype(float), 2, 0)  # any three channels
    jfif = [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    full = np.clip(np.rint(np.stack(jfif, axis=2)), 0, 255).astype(np.uint8)
    yield Case("YCbCr", Image.frombytes("YCbCr", (WIDTH, HEIGHT), RGB.tobytes()), full, ".tif", tolerance=2)
    hsv = [[colorsys.hsv_to_rgb(*pixel) for pixel in row] for row in (RGB / 255).tolist()]
    levels = np.rint(255 * np.array(hsv)).astype(np.uint8)
    yield Case("HSV", Image.frombytes("HSV", (WIDTH, HEIGHT), RGB.tobytes()), levels, "", tolerance=4)
    lightness = GREY / 255 * 100  # greys: no colour, a = b = 0
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    lab = np.stack([GREY, np.zeros_like(GREY), np.zeros_like(GREY)], axis=2)
    yield Case("LAB", Image.frombytes("LAB", (WIDTH, HEIGHT), lab.tobytes()), narrow(srgb, 1), ".tif", tolerance=2)


CASES = list(cases())
