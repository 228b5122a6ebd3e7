"""The search page: the images, texts and sounds that a search found, in one HTML file that works offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from clip_common import page
from clip_common.page import RESULTS_STYLE, escape, result_card, thumbnail
from edgeglass.report.sounds import make_player

MAKER = "edgeglass search"
"""The command that pages are marked with."""
LONGEST = 200
"""Characters of a text, in results and in the heading, from which it is cut."""
KINDS = {"image": "image", "text": "text", "audio": "sound"}
"""Modality → its name on the page."""


@dataclass(frozen=True)
class Query:
    """A search: words, an image, a sound, or several of them; at least one is given.

    Attributes:
        words: Text.
        image: An image file.
        audio: A sound file.
    """

    words: str | None = None
    image: Path | None = None
    audio: Path | None = None

    @property
    def parts(self) -> list[str]:
        """What is shown of it: words in quotation marks, files by name."""
        words = [] if self.words is None else [f"“{_cut(self.words)}”"]
        return words + [path.name for path in (self.image, self.audio) if path is not None]


@dataclass(frozen=True)
class PageHit:
    """A result of a search.

    Attributes:
        modality: "image", "text" or "audio".
        similarity: Cosine similarity to the query.
        path: The file; of a text, None or the file that it is from.
        text: The text; None for images and sounds.
        below_threshold: Whether the similarity is below the calibrated threshold.
        duplicates: Number of near-duplicates that it stands for.
    """

    modality: str
    similarity: float
    path: Path | None = None
    text: str | None = None
    below_threshold: bool = False
    duplicates: int = 0


def check_replaceable(file: Path) -> None:
    """Raise ValueError if `file` exists and is not a search page."""
    page.check_replaceable(file, maker=MAKER)


def write_page(
    file: Path,
    *,
    query: Query,
    hits: Sequence[PageHit],
    root: Path,
    items: Mapping[str, int],
    model: str,
    note: str | None = None,
    nothing_below: float | None = None,
) -> Path:
    """Write the results of a search, atomically; an earlier search page of that name is replaced.

    Images are embedded as JPEG of 256 pixels at most, sounds as WAV of 10 seconds at most.

    Args:
        file: The page.
        query: What was asked.
        hits: Results, best first. Those below the threshold follow the others, greyed.
        root: What was searched. Paths below it are shown relative to it.
        items: Modality → number of its items in the index.
        model: Name of the model.
        note: A line about the search, such as the recall of its first pass; None writes none.
        nothing_below: The calibrated threshold; None if there is none, and then no hit is below it.

    Raises:
        ValueError: `file` exists and is not a search page, or an image or sound is gone or unreadable.
    """
    check_replaceable(file)
    cards = [(hit.below_threshold, _card(rank, hit, root)) for rank, hit in enumerate(hits, start=1)]
    above = [card for below, card in cards if not below]
    below = [card for below, card in cards if below]
    found = _list(above, "found") if above else ""
    if below:
        found += (
            f'<p class="nothing">{_say_nothing(nothing_below, some_above=bool(above))}</p>\n{_list(below, "below")}'
        )
    body = _BODY.format(
        asked=_header(query),
        found=found or '<p class="nothing">Nothing here: no results.</p>',
        count=f"{_count(len(hits), 'result')} from {_count_items(items)} in <bdi>{escape(root)}</bdi>",
        note=f"<p>{escape(note)}</p>\n" if note is not None else "",
        model=escape(model),
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
    )
    return page.write_page(file, maker=MAKER, title=" + ".join(query.parts), style=RESULTS_STYLE + _STYLE, body=body)


def _header(query: Query) -> str:
    """Return the query: its image and its sound, and what it consists of in words."""
    shown, given = "", []
    if query.words is not None:
        given.append("these words")
    if query.image is not None:
        shown += f'<img class="query" src="{thumbnail(query.image)}" alt="">'
        given.append("this image")
    if query.audio is not None:
        shown += f'<div class="query sound">{make_player(query.audio).html}</div>'
        given.append("this sound")
    kind = "" if given == ["these words"] else f"<p>closest to {' and '.join(given)}</p>"
    parts = " + ".join(f"<bdi>{escape(part)}</bdi>" for part in query.parts)
    return f"{shown}<div>{kind}<h1>{parts}</h1></div>"


def _card(rank: int, hit: PageHit, root: Path) -> str:
    name = "" if hit.path is None else _name(hit.path, root)
    notes = [f"and {_count(hit.duplicates, 'near-duplicate')}"] if hit.duplicates else []
    if hit.text is not None:
        shown = f'<blockquote dir="auto">{escape(_cut(hit.text))}</blockquote>'
    else:
        assert hit.path is not None  # images and sounds have one
        if hit.modality == "image":
            shown = f'<img src="{thumbnail(hit.path)}" alt="{escape(name)}">'
        else:
            player = make_player(hit.path)
            shown = f'<div class="sound">{player.html}</div>'
            notes.insert(0, player.note)
    label, note = KINDS[hit.modality], ", ".join(notes)
    return result_card(shown, rank=rank, similarity=hit.similarity, name=name, label=label, note=note)


def _name(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _list(cards: Sequence[str], kind: str) -> str:
    return f'<ol class="{kind}">\n' + "\n".join(cards) + "\n</ol>\n"


def _say_nothing(threshold: float | None, *, some_above: bool) -> str:
    if some_above:
        return f"Nothing more here: the others do not reach {threshold:.3f}, the calibrated similarity of a match."
    return f"Nothing here: no result reaches {threshold:.3f}, the calibrated similarity of a match. The closest:"


def _count_items(items: Mapping[str, int]) -> str:
    return ", ".join(_count(number, KINDS[modality]) for modality, number in items.items() if number) or "no items"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cut(text: str) -> str:
    """Return text on one line, cut to `LONGEST` characters."""
    start = text[: 10 * LONGEST]  # of a text with much white space; a whole book need not be split
    line = " ".join(start.split())
    return line if len(line) <= LONGEST and start == text else f"{line[:LONGEST].rstrip()} …"


_STYLE = """
header { flex-wrap: wrap; }
header > div:last-child { flex: 1 1 260px; min-width: 0; }
.frame blockquote { padding: 18px 16px; overflow-wrap: anywhere; }
.frame blockquote::before { content: "“"; }
.frame blockquote::after { content: "”"; }
.frame > .sound { position: absolute; inset: 0; }
.sound { display: flex; flex-direction: column; gap: 8px; padding: 12px; }
.query.sound { width: 240px; max-width: 100%; height: 128px; background: var(--frame); }
.wave { flex: 1; min-height: 0; width: 100%; }
.wave path { stroke: currentColor; stroke-width: 1.5px; vector-effect: non-scaling-stroke; stroke-linecap: round; }
audio { width: 100%; height: 36px; }
.nothing { border-top: 1px solid var(--line); margin: 28px 0 16px; padding-top: 16px; color: var(--soft); }
.nothing:first-child { margin-top: 0; }
.below .frame { filter: grayscale(1); opacity: 0.55; }
.below li:hover .frame, .below li:focus-within .frame { filter: none; opacity: 1; }
.below .score b { font-weight: 400; color: var(--soft); }
@media (max-width: 470px) { .frame:has(blockquote) { aspect-ratio: auto; } .frame:has(.sound) { aspect-ratio: 2; } }
"""

_BODY = """<header>{asked}</header>
<main>
{found}</main>
<footer>
<p>{count}, by cosine similarity (−1 to 1)</p>
{note}<p>{model} · {date}</p>
</footer>"""
