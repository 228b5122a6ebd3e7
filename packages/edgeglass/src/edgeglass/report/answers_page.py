"""The page of answers: pictures with the questions about them, a model's answers and the truth, in one HTML file."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from clip_common import page
from clip_common.images import read_image
from clip_common.page import RESULTS_STYLE, THUMBNAIL, data_uri, escape
from edgeglass.data.records import Source

MAKER = "edgeglass vlm-eval"
"""The command that pages are marked with."""


@dataclass(frozen=True)
class PageAnswer:
    """One answer.

    Attributes:
        image: The picture; None for a question about none.
        question: The question.
        answer: The model's answer.
        truth: A right answer.
        score: 0 to 1.
    """

    image: Source | None
    question: str
    answer: str
    truth: str
    score: float


def check_replaceable(file: Path) -> None:
    """Raise ValueError if `file` exists and is not a page of answers."""
    page.check_replaceable(file, maker=MAKER)


def write_answers(file: Path, answers: Sequence[PageAnswer], *, title: str, note: str) -> Path:
    """Write answers as a page, atomically; an earlier page of answers of that name is replaced.

    Args:
        file: The page.
        answers: In the order of the page. Pictures are embedded as JPEG of 256 pixels at most.
        title: Plain text.
        note: A line below the answers, such as the accuracy over all of them.

    Raises:
        ValueError: `file` exists and is not a page of answers, or a picture is gone or unreadable.
    """
    body = _BODY.format(
        title=escape(title),
        cards="\n".join(map(_card, answers)),
        note=escape(note),
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
    )
    return page.write_page(file, maker=MAKER, title=title, style=RESULTS_STYLE + _STYLE, body=body)


def _card(answer: PageAnswer) -> str:
    shown = '<p class="none">no image</p>'
    if answer.image is not None:
        content = answer.image if isinstance(answer.image, Path) else answer.image.read()
        picture = read_image(content, name=answer.image.name)
        shown = f'<img src="{data_uri(picture, longest=THUMBNAIL)}" alt="">'
    right = answer.score == 1
    mark = '<b class="right">✓</b>' if right else '<b class="wrong">✗</b>'
    truth = "" if right else f'<p class="name">truth: <bdi>{escape(answer.truth)}</bdi></p>'
    said = escape(answer.answer) or "(nothing)"
    return (
        f'<li><div class="frame">{shown}</div><p class="question"><bdi>{escape(answer.question)}</bdi></p>'
        f'<p class="answer">{mark} <bdi>{said}</bdi></p>{truth}</li>'
    )


_STYLE = """
.question { padding: 10px 12px 0; color: var(--soft); overflow-wrap: anywhere; }
.answer { padding: 2px 12px 10px; font-size: 17px; overflow-wrap: anywhere; }
.answer + .name { margin-top: -8px; padding-bottom: 10px; }
.right { color: #2f8f4e; }
.wrong { color: #c2452d; }
.none { padding: 18px 16px; color: var(--soft); }
"""

_BODY = """<header><div><h1><bdi>{title}</bdi></h1></div></header>
<main>
<ol>
{cards}
</ol>
</main>
<footer><p>{note}</p><p>{date}</p></footer>"""
