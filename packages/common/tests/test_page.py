"""HTML pages: text is escaped, nothing is loaded from elsewhere, and files of other makers are never overwritten."""

import base64
import io
import os

import pytest
from PIL import Image

from clip_common.errors import printable
from clip_common.page import check_replaceable, data_uri, escape, write_page


def page(file, *, maker="clipse search", body="<p>found</p>"):
    return write_page(file, maker=maker, title='<b>"dogs" & cats</b>', style="p { color: red; }", body=body)


def test_a_page_stands_alone(tmp_path):
    written = page(tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;&quot;dogs&quot; &amp; cats&lt;/b&gt; · clipse search</title>" in written
    assert "p { color: red; }</style>" in written
    assert "<body>\n<p>found</p>\n</body>" in written
    assert "prefers-color-scheme: dark" in written
    assert "default-src 'none'" in written
    assert not [word for word in ("<script", "<link", "http:", "https:", "//", "url(", "@import") if word in written]


def test_a_page_replaces_its_own_and_nothing_else(tmp_path):
    file = page(tmp_path / "page.html")
    page(file, body="<p>again</p>")
    assert "again" in file.read_text(encoding="utf-8")
    for refuse in (check_replaceable, page):
        with pytest.raises(ValueError, match=r"page\.html exists and is no page of aaclip predict"):
            refuse(file, maker="aaclip predict")
    assert "again" in file.read_text(encoding="utf-8")
    check_replaceable(tmp_path / "none.html", maker="clipse search")
    with pytest.raises(ValueError, match="exists"):
        check_replaceable(tmp_path, maker="clipse search")


@pytest.mark.parametrize(("size", "shown"), [((1200, 400), (256, 85)), ((40, 30), (40, 30))])
def test_a_picture_in_a_page_is_a_small_jpeg_and_the_picture_stays(size, shown):
    picture = Image.new("RGB", size, (200, 40, 40))
    kind, _, content = data_uri(picture, longest=256).partition(";base64,")
    embedded = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (kind, embedded.format, embedded.size) == ("data:image/jpeg", "JPEG", shown)
    assert picture.size == size


def test_names_of_any_bytes_are_shown():
    assert printable(os.fsdecode(b"latin \xe9.png")) == "latin \N{REPLACEMENT CHARACTER}.png"
    assert printable("雪, café 🐕") == "雪, café 🐕"
    assert printable("half of \ud83d") == "half of \N{REPLACEMENT CHARACTER}"
    assert escape("<a href='x'>") == "&lt;a href=&#x27;x&#x27;&gt;"
