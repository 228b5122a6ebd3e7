"""The report of `aaclip predict`: the answers for a folder of pictures in one HTML file."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from PIL import Image

from aaclip.report.findings import Finding, Region
from aaclip.report.overlay import legend, overlay
from clip_common import page
from clip_common.images import read_image
from clip_common.page import data_uri, escape

LONGEST = 360
"""Longer side of a picture, in pixels."""
LISTED = 4
"""Regions that are listed in words; all are drawn."""
MAKER = "aaclip predict"
VERDICTS = {True: ("anomalous", "▲"), False: ("normal", "✓"), None: ("no verdict", "–")}


def check_replaceable(file: Path) -> None:
    """Raise ValueError if `file` exists and is not a report of `aaclip predict`. Call before slow work."""
    page.check_replaceable(file, maker=MAKER)


def write_page(
    file: Path,
    findings: Iterable[Finding],
    *,
    title: str,
    threshold: float | None,
    threshold_reason: str,
    model: str,
    failures: Mapping[str, str] | None = None,
) -> Path:
    """Write a report, the highest score first, whole or not at all; an earlier report of that name is replaced.

    Args:
        file: The report.
        findings: One for each picture. They are consumed one by one, and only their thumbnails are kept. Scores and
            maps are shown on the scale from 0 to 1.
        title: Heading.
        threshold: Score from which a picture is anomalous; None without verdicts.
        threshold_reason: Where the threshold comes from, half a sentence; unused without one.
        model: Name of the model.
        failures: Picture that could not be read → what is wrong with it. Read after the last finding, so that it may
            grow until then.

    Raises:
        ValueError: Another program wrote `file`, or a picture is gone.
    """
    check_replaceable(file)
    cards: list[tuple[float, int, str]] = []
    counts = dict.fromkeys(VERDICTS, 0)
    for finding in findings:
        cards.append((-finding.score, len(cards), _card(finding, threshold)))
        counts[finding.anomalous] += 1
    body = _BODY.format(
        title=escape(title),
        counts=_count_verdicts(counts, failed=len(failures or {})),
        threshold=_threshold(threshold, threshold_reason),
        legend=", ".join(legend()),
        cards="\n".join(card for _, _, card in sorted(cards)),
        failures=_failures(failures or {}),
        model=escape(model),
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
    )
    return page.write_page(file, maker=MAKER, title=title, style=_STYLE, body=body)


def _card(finding: Finding, threshold: float | None) -> str:
    picture = read_image(finding.path)
    small = picture.copy()
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    heated = overlay(small, finding.map_HW, regions=finding.regions)
    name, (verdict, mark) = escape(finding.path.as_posix()), VERDICTS[finding.anomalous]
    against = "" if threshold is None else f", threshold {threshold:.3f}"
    tick = "" if threshold is None else f'<u style="left:{_percent(threshold)}"></u>'
    return (
        f'<li class="{verdict.replace(" ", "-")}">'
        f'<div class="pair"><img src="{data_uri(small, longest=LONGEST)}" alt="{name}">'
        f'<img src="{data_uri(heated, longest=LONGEST)}" alt="heatmap"></div>'
        f'<p class="verdict"><b>{mark} {verdict}</b><span>{finding.score:.3f}</span></p>'
        f'<div class="bar" role="img" aria-label="score {finding.score:.3f}{against}">'
        f'<i style="width:{_percent(finding.score)}"></i>{tick}</div>'
        f'<p class="name"><bdi>{name}</bdi> · <bdi>{escape(finding.name)}</bdi></p>'
        f"{_regions(finding.regions, finding.map_HW.shape, picture.size)}</li>"
    )


def _regions(regions: Sequence[Region], shape: tuple[int, ...], size: tuple[int, int]) -> str:
    """Describe the first regions in words, in pixels of the picture."""
    if not regions:
        return ""
    across, down = size[0] / shape[1], size[1] / shape[0]
    lines = [
        f"{round((region.right - region.left) * across)} × {round((region.bottom - region.top) * down)} pixels at "
        f"({round(region.left * across)}, {round(region.top * down)}), peak {region.peak:.2f}"
        for region in regions[:LISTED]
    ]
    if len(regions) > LISTED:
        lines.append(f"and {len(regions) - LISTED:,} more")
    return f'<ul class="regions">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _count_verdicts(counts: Mapping[bool | None, int], *, failed: int) -> str:
    words = [(word.replace(" ", "-"), f"{mark} {counts[key]:,} {word}") for key, (word, mark) in VERDICTS.items()]
    shown = [(kind, line) for (kind, line), count in zip(words, counts.values(), strict=True) if count]
    if failed:
        shown.append(("failed", f"✕ {failed:,} could not be read"))
    return " ".join(f'<b class="{kind}">{line}</b>' for kind, line in shown) or "<b>no picture</b>"


def _threshold(threshold: float | None, reason: str) -> str:
    if threshold is None:
        return "No threshold is set, so there are no verdicts: aaclip calibrate finds one."
    return f"A score of {threshold:.3f} or more means anomalous: {escape(reason)}."


def _failures(failures: Mapping[str, str]) -> str:
    if not failures:
        return ""
    lines = "".join(f"<li><bdi>{escape(name)}</bdi>: {escape(reason)}</li>" for name, reason in failures.items())
    return f"<section><h2>Could not be read</h2><ul>{lines}</ul></section>"


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%"


_STYLE = """
:root { --bad: #b3261e; --good: #1b6e38; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8f85; --good: #7fd49b; } }
header { padding-top: 36px; padding-bottom: 24px; }
header p, .name, .regions { color: var(--soft); }
.counts { display: flex; flex-wrap: wrap; gap: 6px 22px; font-size: 18px; margin: 10px 0; color: var(--ink); }
.anomalous > b, b.anomalous, .anomalous .verdict b { color: var(--bad); }
b.normal, .normal .verdict b { color: var(--good); }
b.no-verdict, b.failed { color: var(--soft); }
.legend { display: inline-block; width: 120px; height: 10px; border-radius: 5px; border: 1px solid var(--line); }
ol { list-style: none; padding: 0; display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
ol > li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  padding-bottom: 12px; break-inside: avoid; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; background: var(--frame); margin-bottom: 10px; }
.pair img { width: 100%; aspect-ratio: 1; object-fit: contain; }
.verdict, .name, .regions { padding: 0 14px; }
.verdict { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
.bar { position: relative; height: 6px; border-radius: 3px; background: var(--frame); margin: 6px 14px 10px; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--soft); }
.anomalous .bar i { background: var(--bad); }
.normal .bar i { background: var(--good); }
.bar u { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--ink); }
.name { font-size: 13px; overflow-wrap: anywhere; }
.regions { list-style: none; font-size: 13px; font-variant-numeric: tabular-nums; }
h2 { font-size: 16px; }
section { margin-bottom: 16px; }
section ul { padding-left: 20px; }
"""

_BODY = """<header>
<h1>{title}</h1>
<p class="counts">{counts}</p>
<p>{threshold}</p>
<p>Heat: 0 <span class="legend" style="background: linear-gradient(to right, {legend})"></span> 1, the same in every
picture. The highest score comes first; the bar is the score from 0 to 1, the tick the threshold.</p>
</header>
<main><ol>
{cards}
</ol></main>
<footer>
{failures}
<p>{model} · {date}</p>
</footer>"""
