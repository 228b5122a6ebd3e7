"""The search page: the images that a search found, in one HTML file that works offline."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from clip_common import page
from clip_common.page import RESULTS_STYLE, escape, result_card, thumbnail

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
    return page.write_page(file, maker=MAKER, title=title, style=RESULTS_STYLE, body=body)


def _card(rank: int, path: Path, similarity: float, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    shown = f'<img src="{thumbnail(path)}" alt="{escape(name)}">'
    return result_card(shown, rank=rank, similarity=similarity, name=name)


_BODY = """<header>{asked}</header>
<main><ol>
{hits}
</ol></main>
<footer>
<p>{count}, by cosine similarity (−1 to 1)</p>
<p>{model} · {date}</p>
</footer>"""
