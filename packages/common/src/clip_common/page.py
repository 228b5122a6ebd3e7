"""HTML pages of the systems: one file that embeds its pictures and loads nothing, in light and dark colours.

Needs pillow, from the extra `clip` or `synthetic`, and `clip_common.runs`.
"""

import base64
import html
import io
from pathlib import Path

from PIL import Image

from clip_common.errors import printable
from clip_common.images import read_image
from clip_common.runs.files import write_text

THUMBNAIL = 256
"""Pixels of a thumbnail's longer side."""


def check_replaceable(file: Path, *, maker: str) -> None:
    """Raise ValueError if `file` exists and is not a page that `maker`, such as "clipse search", wrote."""
    if file.exists() and not (file.is_file() and _mark(maker).encode() in file.read_bytes()[:1024]):
        raise ValueError(f"{file} exists and is no page of {maker}: name another file, or remove this one")


def write_page(file: Path, *, maker: str, title: str, style: str, body: str) -> Path:
    """Write a page, whole or not at all; replace an earlier page of the same maker.

    Args:
        file: The page.
        maker: The command that makes the page. The page records it; only pages of the same maker are replaced.
        title: Plain text.
        style: CSS in addition to the shared style. The shared colours, light and dark, are `--back`, `--card`,
            `--frame`, `--ink`, `--soft` and `--line`.
        body: HTML; escape text from outside with `escape` first.

    Raises:
        ValueError: `file` exists and is not a page of `maker`.
    """
    check_replaceable(file, maker=maker)
    page = _PAGE.format(
        mark=_mark(maker),
        policy=_POLICY,
        style=_STYLE + style,
        title=escape(title),
        maker=escape(maker),
        body=body,
    )
    return write_text(file, page)


def result_card(shown: str, *, rank: int, similarity: float, name: str, label: str = "", note: str = "") -> str:
    """Return a search result as an item of a list; `RESULTS_STYLE` lays such lists out as a grid of cards.

    Args:
        shown: HTML of the result: a picture, or what stands in for one.
        rank: Its place, from 1.
        similarity: Cosine similarity to the query.
        name: Plain text below it, such as its path.
        label: Plain text beside the rank, such as its kind.
        note: Plain text below the name.
    """
    kind = f" <i>{escape(label)}</i>" if label else ""
    named = f'<p class="name"><bdi>{escape(name)}</bdi></p>' if name else ""
    noted = f'<p class="name">{escape(note)}</p>' if note else ""
    return (
        f'<li><div class="frame">{shown}</div>'
        f'<p class="score"><span>{rank}{kind}</span><b>{similarity:.3f}</b></p>{named}{noted}</li>'
    )


def thumbnail(path: Path) -> str:
    """Return an image as a data URI: JPEG, its longer side 256 pixels at most, turned as EXIF says.

    Raises:
        DataError: Not a readable image.
    """
    return data_uri(read_image(path), longest=THUMBNAIL)


def data_uri(picture: Image.Image, *, longest: int) -> str:
    """Return an RGB picture as a JPEG data URI; its longer side is scaled down to at most `longest` pixels."""
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def escape(value: str | Path) -> str:
    """Return text or a path escaped for HTML, attributes included."""
    return html.escape(printable(value))


def _mark(maker: str) -> str:
    return f'<meta name="generator" content="{escape(maker)}">'


_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --back: #f6f6f4; --card: #fff; --frame: #ececea; --ink: #1c1c1a; --soft: #6b6b66;
  --line: #dededa; }
@media (prefers-color-scheme: dark) { :root { --back: #161618; --card: #202023; --frame: #29292d; --ink: #ececea;
  --soft: #a0a09a; --line: #36363a; } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--back); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header, main, footer { max-width: 1180px; margin: auto; padding: 0 24px; }
h1 { font-size: 28px; font-weight: 600; line-height: 1.25; overflow-wrap: anywhere; }
footer { padding-top: 24px; padding-bottom: 40px; font-size: 13px; color: var(--soft); overflow-wrap: anywhere; }
"""

RESULTS_STYLE = """
header { display: flex; gap: 20px; align-items: center; padding-top: 36px; padding-bottom: 24px; }
header p, .score span, .name { color: var(--soft); }
.query { max-width: 128px; max-height: 128px; border-radius: 8px; }
ol { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr));
  gap: 16px; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  padding-bottom: 12px; break-inside: avoid; }
.frame { aspect-ratio: 1; background: var(--frame); position: relative; margin-bottom: 10px; }
.frame > img { position: absolute; width: 100%; height: 100%; object-fit: contain; }
.score, .name { padding: 0 12px; }
.score { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
.score i { font-style: normal; font-size: 12px; margin-left: 6px; padding: 1px 7px; border-radius: 9px;
  background: var(--frame); }
.name { font-size: 13px; overflow-wrap: anywhere; }
"""
"""Style of a search page: a header with the query, an image of class `query` in it, and lists of `result_card`s."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{mark}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · {maker}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
