"""The search page: complete in one file, and written whole or not at all."""

import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import toy_photos as toy
from helpers.commands import refused
from PIL import Image

from clipse import Retriever
from clipse.data import DataError
from clipse.report.pages import write_page

ODD_NAMES = toy.ODD_NAMES
draw = toy.draw
model = toy.model
photos = toy.photos
search = toy.search
stored_files = toy.stored_files


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

    def pictures(self) -> list[Image.Image]:
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        prefix = "data:image/jpeg;base64,"
        assert all(source.startswith(prefix) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix)))) for source in sources]


def test_the_page_stands_alone_and_says_what_was_found(search, model, photos, tmp_path):
    draw(photos / "large.png", seed=20, size=(1200, 400))
    query = 'a <script>alert("dog")</script> & snow'
    code, printed, error = search(query, "--html", "page.html", "--k", 10)
    assert code == 0, error
    assert "page.html" in printed
    page = Page(tmp_path / "page.html")
    assert query in page.text
    assert f"10 of 10 images in {photos}" in page.text
    assert f"{model.name} · 20" in page.text  # and the date
    place = 0
    for hit in Retriever.from_pretrained(model).index(photos).search(query, k=10):
        name = hit.path.relative_to(photos).as_posix()
        place = page.text.index(f"{hit.similarity:.3f}{name}", place)  # in this order
    assert set(ODD_NAMES) <= {attributes["alt"] for tag, attributes in page.tags if tag == "img"}
    sizes = [picture.size for picture in page.pictures()]
    assert len(sizes) == 10
    assert (256, 85) in sizes
    rest = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not [word for word in ("<script", "<link", "http:", "https:", "//", "url(", "@import") if word in rest]


def test_the_page_of_an_image_shows_it_first(search, photos, tmp_path):
    query = photos / ODD_NAMES[2]
    assert search(query, "--html", "like.html", "--k", 2)[0] == 0
    page = Page(tmp_path / "like.html")
    assert "images like" in page.text
    assert query.name in page.text
    asked, best, other = (np.asarray(picture) for picture in page.pictures())
    assert np.array_equal(asked, best)
    assert not np.array_equal(asked, other)


def test_a_name_that_is_no_utf8_is_shown(search, photos, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(photos) + b"/latin \xe9.png"))
    try:
        draw(odd, seed=30)
    except OSError:
        pytest.skip("this file system takes no such name")
    code, printed, error = search("a dog", "--k", 10, "--html", "page.html")
    assert code == 0, error
    assert "latin \N{REPLACEMENT CHARACTER}.png" in printed
    assert "latin \N{REPLACEMENT CHARACTER}.png" in Page(tmp_path / "page.html").text


def test_a_page_replaces_a_page_and_nothing_else(search, tmp_path):
    file = tmp_path / "page.html"
    file.write_text("<p>mine</p>")
    refused(search("a dog", "--html", "page.html"), "page.html", "no page of clipse search")
    assert file.read_text() == "<p>mine</p>"
    assert stored_files(tmp_path) == []  # told before anything is encoded
    file.unlink()
    assert search("a dog", "--html", "page.html")[0] == 0
    assert search("a red cup", "--html", "page.html")[0] == 0
    assert "a red cup" in Page(file).text


def test_a_page_is_written_whole_or_not_at_all(model, photos, tmp_path):
    retriever = Retriever.from_pretrained(model).index(photos)
    hits = retriever.search("a dog", k=3)
    hits[2].path.unlink()
    file = tmp_path / "page.html"
    with pytest.raises(DataError, match="no such file"):
        write_page(file, query="a dog", hits=hits, root=photos, images=9, model="small")
    assert not file.exists()
    assert not list(tmp_path.glob(".*"))
