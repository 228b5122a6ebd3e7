"""HTML pages of the systems: one file that embeds its pictures and loads nothing, in light and dark colours.

Needs pillow, from the extra `clip` or `synthetic`, and `clip_common.runs`.
"""

import base64
import html
import io
from pathlib import Path

from PIL import Image

from clip_common.errors import printable
from clip_common.runs.files import write_text


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
    page = _PAGE.format(mark=_mark(maker), style=_STYLE + style, title=escape(title), maker=escape(maker), body=body)
    return write_text(file, page)


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
