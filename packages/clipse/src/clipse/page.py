"""What a search found as one HTML file: pictures within, nothing loaded from elsewhere, light and dark."""

import base64
import html
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from PIL import Image

from clip_common.runs import write_atomically
from clipse.data import DataError
from clipse.data.images import decode
from clipse.index import Hit, printable

THUMBNAIL = 256
"""Pixels of a picture's longer side."""
MARK = '<meta name="generator" content="clipse search">'
"""By this a page is known as ours, and may be overwritten."""


def require_replaceable(file: Path) -> None:
    """Refuse to overwrite what is no search page.

    Raises:
        ValueError: Something else has that name.
    """
    if file.exists() and not (file.is_file() and MARK.encode() in file.read_bytes()[:1024]):
        raise ValueError(f"{file} exists and is no page of clipse search: name another file, or remove it")


def write_page(file: Path, *, query: str | Path, hits: Sequence[Hit], root: Path, images: int, model: str) -> Path:
    """Write what was found; whole or not at all. An earlier search page of that name is replaced.

    Args:
        file: The page.
        query: Words, or the image that was searched by.
        hits: Best first; their images are embedded as JPEG, 256 pixels at most.
        root: The folder that was searched.
        images: How many images it holds.
        model: Name of the model.

    Raises:
        ValueError: The name is taken by something else, or an image is gone.
    """
    require_replaceable(file)
    shown = printable(query)
    asked = f"<h1>“{_text(shown)}”</h1>"
    if isinstance(query, Path):
        picture = f'<img class="query" src="{thumbnail(query)}" alt="">'
        asked = f"{picture}<div><p>images like</p><h1><bdi>{_text(query.name)}</bdi></h1></div>"
    page = _PAGE.format(
        mark=MARK,
        style=_STYLE,
        title=_text(query.name if isinstance(query, Path) else shown),
        asked=asked,
        hits="\n".join(_card(rank, hit, root) for rank, hit in enumerate(hits, start=1)),
        count=f"{len(hits):,} of {images:,} images in <bdi>{_text(root)}</bdi>",
        model=_text(model),
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
    )
    with write_atomically(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return file


def thumbnail(path: Path) -> str:
    """An image as a data URI: JPEG, its longer side 256 pixels at most, turned as EXIF says.

    Raises:
        DataError: No readable image.
    """
    try:
        picture = decode(path.read_bytes(), name=printable(path))
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _card(rank: int, hit: Hit, root: Path) -> str:
    name = _text(hit.path.relative_to(root).as_posix())
    return (
        f'<li><div class="frame"><img src="{thumbnail(hit.path)}" alt="{name}"></div>'
        f'<p class="score"><span>{rank}</span><b>{hit.similarity:.3f}</b></p><p class="name"><bdi>{name}</bdi></p></li>'
    )


def _text(value: str | Path) -> str:
    return html.escape(printable(value))


_STYLE = """
:root { color-scheme: light dark; --back: #f6f6f4; --card: #fff; --frame: #ececea; --ink: #1c1c1a; --soft: #6b6b66;
  --line: #dededa; }
@media (prefers-color-scheme: dark) { :root { --back: #161618; --card: #202023; --frame: #29292d; --ink: #ececea;
  --soft: #a0a09a; --line: #36363a; } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--back); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header, main, footer { max-width: 1180px; margin: auto; padding: 0 24px; }
header { display: flex; gap: 20px; align-items: center; padding-top: 36px; padding-bottom: 24px; }
header p, footer, .score span, .name { color: var(--soft); }
h1 { font-size: 28px; font-weight: 600; line-height: 1.25; overflow-wrap: anywhere; }
.query { max-width: 128px; max-height: 128px; border-radius: 8px; }
ol { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr));
  gap: 16px; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  padding-bottom: 12px; break-inside: avoid; }
.frame { aspect-ratio: 1; background: var(--frame); position: relative; margin-bottom: 10px; }
.frame img { position: absolute; width: 100%; height: 100%; object-fit: contain; }
.score, .name { padding: 0 12px; }
.score { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
.name { font-size: 13px; overflow-wrap: anywhere; }
footer { padding-top: 24px; padding-bottom: 40px; font-size: 13px; overflow-wrap: anywhere; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{mark}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · clipse search</title>
<style>{style}</style>
</head>
<body>
<header>{asked}</header>
<main><ol>
{hits}
</ol></main>
<footer>
<p>{count}, by cosine similarity (−1 to 1)</p>
<p>{model} · {date}</p>
</footer>
</body>
</html>
"""
