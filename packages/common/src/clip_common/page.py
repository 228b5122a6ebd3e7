"""What every HTML page of ours is: one file with its pictures within, nothing loaded from elsewhere, light and dark.

Needs pillow, of the extra `clip` or `synthetic`, and `clip_common.runs`.
"""

import base64
import html
import io
import os
from pathlib import Path

from PIL import Image

from clip_common.runs.files import write_text


def check_replaceable(file: Path, *, maker: str) -> None:
    """Refuse to overwrite what is no page of `maker`'s, such as "clipse search".

    Raises:
        ValueError: Something else has that name.
    """
    if file.exists() and not (file.is_file() and _mark(maker).encode() in file.read_bytes()[:1024]):
        raise ValueError(f"{file} exists and is no page of {maker}: name another file, or remove it")


def write_page(file: Path, *, maker: str, title: str, style: str, body: str) -> Path:
    """Write a page, whole or not at all. An earlier page of that maker and name is replaced.

    Args:
        file: The page.
        maker: The command that makes it; by this a page is known as ours, and may be overwritten.
        title: Plain text.
        style: CSS beyond what all pages share: `--back`, `--card`, `--frame`, `--ink`, `--soft` and `--line` are the
            shared colours, light and dark.
        body: HTML; what is not ours in it went through `text`.

    Raises:
        ValueError: The name is taken by something else.
    """
    check_replaceable(file, maker=maker)
    page = _PAGE.format(mark=_mark(maker), style=_STYLE + style, title=text(title), maker=text(maker), body=body)
    return write_text(file, page)


def data_uri(picture: Image.Image, *, longest: int) -> str:
    """An RGB picture as a JPEG within the page, its longer side `longest` pixels at most."""
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def text(value: str | Path) -> str:
    """Words or a path as they may stand in HTML, in an attribute too."""
    return html.escape(printable(value))


def printable(path: str | Path) -> str:
    """A path as text that any output can take: bytes that are no UTF-8 become a replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")


def _mark(maker: str) -> str:
    return f'<meta name="generator" content="{text(maker)}">'


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

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{mark}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · {maker}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
