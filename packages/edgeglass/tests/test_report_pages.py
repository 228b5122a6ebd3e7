"""The search page: complete in one file, everything escaped, sounds that play, and written whole or not at all."""

import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from clip_common.errors import DataError
from edgeglass.report.pages import PageHit, Query, check_replaceable, write_page
from edgeglass.report.sounds import draw_waveform, wav_uri

RED, LOUD = 'rote Bälle/ein "roter" <ball> & 雪.png', "töne/bellen.wav"
EVIL = 'a <script>alert("dog")</script> & snow'


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def sources(self, tag: str) -> list[str]:
        return [attributes["src"] for name, attributes in self.tags if name == tag]

    def lists(self) -> list[str]:
        return [attributes["class"] for name, attributes in self.tags if name == "ol"]


@pytest.fixture
def root(tmp_path):
    """A folder with an image of 600 × 200 pixels and a sound of 0.5 s in stereo at 8 kHz."""
    folder = tmp_path / "gallery"
    for name in (RED, LOUD):
        (folder / name).parent.mkdir(parents=True)
    Image.new("RGB", (600, 200), (200, 30, 30)).save(folder / RED)
    soundfile.write(folder / LOUD, np.tile(np.float32([[0.5, -0.1]]), (4000, 1)), 8000)
    return folder


def write(root, hits, *, query=None, name="page.html", **changed):
    arguments = {"root": root, "items": {"image": 1200, "text": 1, "audio": 0}, "model": "small"} | changed
    return Page(write_page(root.parent / name, query=query or Query(words="a red ball"), hits=hits, **arguments))


def decoded(source):
    kind, _, content = source.partition(";base64,")
    return kind, base64.b64decode(content)


def test_a_page_shows_all_modalities_and_loads_nothing(root):
    hits = [
        PageHit("image", 0.9, path=root / RED),
        PageHit("audio", 0.8, path=root / LOUD, duplicates=1),
        PageHit("text", 0.7, text=EVIL, path=root / "captions.txt", duplicates=1200),
    ]
    page = write(root, hits, query=Query(words=EVIL), note="recall 0.99 of <exact> search")
    cards = [
        f"1 image0.900{RED}",
        f"2 sound0.800{LOUD}0.5 s, and 1 near-duplicate",
        f"{EVIL}3 text0.700captions.txtand 1,200 near-duplicates",
    ]
    places = [page.text.index(card) for card in cards]
    assert places == sorted(places)
    assert f"“{EVIL}”" in page.text
    assert f"3 results from 1,200 images, 1 text in {root}, by cosine similarity" in page.text
    assert "recall 0.99 of <exact> search" in page.text
    assert "small · 20" in page.text  # and the date
    assert page.lists() == ["found"]
    (picture,) = page.sources("img")
    kind, content = decoded(picture)
    assert (kind, Image.open(io.BytesIO(content)).size) == ("data:image/jpeg", (256, 85))
    written = (root.parent / "page.html").read_text(encoding="utf-8")
    rest = re.sub(r"data:[a-z]+/[a-z]+;base64,[\w+/=]+", "", written)
    assert not [word for word in ("<script", "<link", "http:", "https:", "//", "url(", "@import") if word in rest]
    assert "media-src data:" in rest  # without it the players stay silent


def test_sounds_are_mono_at_16_khz_and_have_a_waveform(root):
    page = write(root, [PageHit("audio", 0.8, path=root / LOUD)])
    (source,) = page.sources("audio")
    kind, content = decoded(source)
    info = soundfile.info(io.BytesIO(content))
    assert (kind, info.format, info.subtype) == ("data:audio/wav", "WAV", "PCM_16")
    assert (info.channels, info.samplerate, info.frames) == (1, 16000, 8000)
    samples, _ = soundfile.read(io.BytesIO(content))
    assert np.median(samples) == pytest.approx(0.2, abs=1e-2)  # the mean of both channels
    assert {"svg", "path"} <= {tag for tag, _ in page.tags}


def test_long_sounds_are_cut_and_say_so(root):
    soundfile.write(root / "long.flac", np.full(16000 * 12 + 8000, 0.25, np.float32), 16000)
    page = write(root, [PageHit("audio", 0.8, path=root / "long.flac")])
    assert "first 10 s of 12.5 s" in page.text
    assert soundfile.info(io.BytesIO(decoded(page.sources("audio")[0])[1])).frames == 160_000


def test_samples_become_16_bits_and_loud_ones_are_clipped():
    _, content = decoded(wav_uri(np.float32([0, 0.5, -1, 1, 3, -3])))
    stored, _ = soundfile.read(io.BytesIO(content), dtype="int16")
    assert stored.tolist() == [0, 16384, -32768, 32767, 32767, -32768]


def test_a_waveform_spans_the_highest_and_the_lowest_sample_of_each_part():
    assert 'd="M0.5 -0.500V-0.500M1.5 1.000V1.000"' in draw_waveform(np.float32([0.1, -0.2]))
    quiet = np.zeros(1200, np.float32)
    quiet[:2] = 0.1, -0.05
    lines = re.findall(r"M\S+ \S+V[-\d.]+", draw_waveform(quiet))
    assert len(lines) == 120
    assert lines[:2] == ["M0.5 -1.000V0.500", "M1.5 0.000V0.000"]
    assert "M0.5 0.000V0.000" in draw_waveform(np.zeros(1, np.float32))


def test_results_below_the_threshold_follow_greyed(root):
    hits = [
        PageHit("text", 0.5, text="near"),
        PageHit("text", 0.2, text="far", below_threshold=True),
        PageHit("text", 0.1, text="beside"),  # thresholds may differ by modality
    ]
    page = write(root, hits, nothing_below=0.3)
    assert page.lists() == ["found", "below"]
    order = [page.text.index(text) for text in ("near", "beside", "Nothing more here", "0.300", "far2 text0.200")]
    assert order == sorted(order)
    page = write(root, hits[1:2], nothing_below=0.3)
    assert page.lists() == ["below"]
    assert "Nothing here: no result reaches 0.300" in page.text


def test_no_result_is_said(root):
    page = write(root, [], items={"image": 0})
    assert page.lists() == []
    assert "Nothing here: no results." in page.text
    assert "0 results from no items in" in page.text


def test_a_query_of_files_is_shown_first(root):
    page = write(root, [], query=Query(words="in snow", image=root / RED, audio=root / LOUD))
    assert "closest to these words and this image and this sound" in page.text
    assert f"“in snow” + {Path(RED).name} + bellen.wav" in page.text
    assert (len(page.sources("img")), len(page.sources("audio"))) == (1, 1)
    page = write(root, [], query=Query(audio=root / LOUD))
    assert "closest to this sound" in page.text
    assert page.text.lstrip().startswith("bellen.wav · edgeglass search")


def test_huge_and_broken_text_is_cut_and_repaired(root):
    texts = ["word " * 100_000, " \n" * 1000 + "end", "half of \ud83d", "tab\tand\nline"]
    page = write(root, [PageHit("text", 0.5, text=text) for text in texts], query=Query(words="x" * 10_000))
    assert f"{'word ' * 40}…" in page.text
    assert f"“{'x' * 200} …”" in page.text
    assert "half of \N{REPLACEMENT CHARACTER}" in page.text
    assert "tab and line" in page.text
    assert len(page.text) < 10_000


def test_names_that_are_no_utf8_and_paths_elsewhere_are_shown(root, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/latin \xe9.png"))
    try:
        Image.new("RGB", (8, 8)).save(odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    page = write(root, [PageHit("image", 0.5, path=odd)], query=Query(image=odd))
    assert f"{tmp_path}/latin \N{REPLACEMENT CHARACTER}.png" in page.text


def test_a_page_replaces_a_page_and_nothing_else(root):
    file = root.parent / "page.html"
    file.write_text("<p>mine</p>")
    for refuse in (lambda: check_replaceable(file), lambda: write(root, [])):
        with pytest.raises(ValueError, match=r"page\.html exists and is no page of edgeglass search"):
            refuse()
    assert file.read_text() == "<p>mine</p>"
    file.unlink()
    write(root, [])
    assert "a blue cup" in write(root, [], query=Query(words="a blue cup")).text


@pytest.mark.parametrize(("modality", "name"), [("image", RED), ("audio", LOUD)])
def test_a_page_is_written_whole_or_not_at_all(root, modality, name):
    hit = PageHit(modality, 0.5, path=root / name)
    hit.path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a readable"):
        write(root, [hit])
    hit.path.unlink()
    with pytest.raises(DataError, match="no such file"):
        write(root, [hit])
    assert {file.name for file in root.parent.iterdir()} == {"gallery"}
