"""The search page: the images that a search found, in one HTML file that works offline."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from clip_common import page
from clip_common.images import read_image
from clip_common.page import data_uri, escape

THUMBNAIL = 256
"""Pixels of a picture's longer side."""
MAKER = "clipse search"
"""The command that pages are marked with."""


def check_replaceable(file: Path) -> None:
    """Raise ValueError if `file` exists and is not a search page."""
    page.check_replaceable(file, maker=MAKER)


def write_page(
    file: Path, *, query: str | Path, hits: Sequence[tuple[Path, float]], root: Path, images: int, model: str
) -> Path:
    """Write the results of a search, atomically; an earlier search page of that name is replaced.

    Args:
        file: The page.
        query: Words, or the path of the query image.
        hits: Image files and their similarities, best first; embedded as JPEG of 256 pixels at most.
        root: The folder that was searched.
        images: Number of images in it.
        model: Name of the model.

    Raises:
        ValueError: `file` exists and is not a search page, or an image was deleted.
    """
    check_replaceable(file)
    asked = f"<h1>“{escape(query)}”</h1>"
    if isinstance(query, Path):
        picture = f'<img class="query" src="{thumbnail(query)}" alt="">'
        asked = f"{picture}<div><p>images like</p><h1><bdi>{escape(query.name)}</bdi></h1></div>"
    body = _BODY.format(
        asked=asked,
        hits="\n".join(_card(rank, *hit, root) for rank, hit in enumerate(hits, start=1)),
        count=f"{len(hits):,} of {images:,} images in <bdi>{escape(root)}</bdi>",
        model=escape(model),
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
    )
    title = query.name if isinstance(query, Path) else query
    return page.write_page(file, maker=MAKER, title=title, style=_STYLE, body=body)


def thumbnail(path: Path) -> str:
    """Return an image as a data URI: JPEG, its longer side 256 pixels at most, turned as EXIF says.

    Raises:
        DataError: Not a readable image.
    """
    return data_uri(read_image(path), longest=THUMBNAIL)


def _card(rank: int, path: Path, similarity: float, root: Path) -> str:
    name = escape(path.relative_to(root).as_posix())
    return (
        f'<li><div class="frame"><img src="{thumbnail(path)}" alt="{name}"></div>'
        f'<p class="score"><span>{rank}</span><b>{similarity:.3f}</b></p><p class="name"><bdi>{name}</bdi></p></li>'
    )


_STYLE = """
header { display: flex; gap: 20px; align-items: center; padding-top: 36px; padding-bottom: 24px; }
header p, .score span, .name { color: var(--soft); }
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
"""

_BODY = """<header>{asked}</header>
<main><ol>
{hits}
</ol></main>
<footer>
<p>{count}, by cosine similarity (−1 to 1)</p>
<p>{model} · {date}</p>
</footer>"""
