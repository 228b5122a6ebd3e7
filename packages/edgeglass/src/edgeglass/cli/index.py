"""`edgeglass embed`, `join`, `search` and `calibrate`: indexes of folders, and searches in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clip_common import cli
from clip_common.cli import NewFolder, console

if TYPE_CHECKING:
    from edgeglass.aligner.index import Hit, Index

LISTED = 5
"""Number of skipped files that are listed."""
NEAR = 0.95
"""Cosine from which `search --unique` takes two items for near-duplicates."""

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run, or saved model.", show_default=False)]
IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="Index of `edgeglass embed`.", show_default=False)]


def add_index_verbs(app: typer.Typer) -> None:
    """Add the verbs to the application."""
    app.command()(embed)
    app.command()(join)
    app.command()(search)
    app.command()(calibrate)


def embed(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(help="Images, sounds and texts, at any depth.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="INDEX", help="Folder of the index; updated if it exists.")],
    shard: Annotated[
        str | None, typer.Option(metavar="i/n", help="Part i of n, from 1; `edgeglass join` joins them.")
    ] = None,
    store: Annotated[Literal["files", "lancedb"], typer.Option(help="lancedb: a LanceDB table.")] = "files",
    batch_size: Annotated[int, typer.Option(min=1, help="Items encoded at a time.")] = 64,
) -> None:
    """Index the images, sounds and texts of a folder; only new and changed ones are encoded.

    Texts are the captions of a data set (data.jsonl and the like), or else the lines of *.txt files. Files that cannot
    be read are left out and listed. A stopped run goes on where it was saved, at most two minutes before.

    Examples:

        edgeglass embed runs/edgeglass/first photos/ --out index/

        edgeglass embed runs/edgeglass/first photos/ --out part-1/ --shard 1/4

        edgeglass embed runs/edgeglass/first photos/ --out index/ --store lancedb
    """
    from clip_common.errors import printable
    from edgeglass.aligner.aligner import Aligner
    from edgeglass.aligner.index import Index

    part = None if shard is None else _parse_shard(shard)
    aligner = Aligner.from_pretrained(run)
    with cli.progress("encoding") as progress:
        index = Index.build(aligner, folder, out, shard=part, store=store, batch_size=batch_size, progress=progress)
    _say(f"{_count_items(index)} of {printable(folder)} in {printable(out)}")
    for modality, count in index.foreign.items():
        _say(f"left out {count:,} {_plural(modality, count)}: the model has no encoder of them")
    if index.skipped:
        _say(f"skipped {len(index.skipped):,} that cannot be read, such as")
        for problem in list(index.skipped.values())[:LISTED]:
            _say(f"  {problem}")


def join(
    out: NewFolder,
    parts: Annotated[list[Path], typer.Argument(metavar="PART…", help="All parts 1/n to n/n.", show_default=False)],
) -> None:
    """Join the parts that `edgeglass embed --shard i/n` wrote into one index.

    Example:

        edgeglass join index/ part-1/ part-2/ part-3/ part-4/
    """
    from clip_common.errors import printable
    from edgeglass.aligner.index import Index

    _say(f"{_count_items(Index.merge(out, parts))} in {printable(out)}")


def search(
    folder: IndexArgument,
    query: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY…", help="Words, an image file, a sound file.")
    ] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Image to search with.")] = None,
    audio: Annotated[Path | None, typer.Option(metavar="FILE", help="Sound to search with.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Results.")] = 10,
    dim: Annotated[int | None, typer.Option(min=1, help="Compare this many numbers of each vector.")] = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Rank this many of the best at --dim at full width.")
    ] = None,
    first: Annotated[
        Literal["float32", "int8", "binary"], typer.Option(help="Codes that find the candidates.")
    ] = "float32",
    unique: Annotated[bool, typer.Option("--unique", help="Collapse near-duplicates.")] = False,
    modality: Annotated[
        Literal["image", "text", "audio"] | None, typer.Option(help="Search items of this modality only.")
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Filter of a LanceDB table.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the recall of such searches against exact search.")
    ] = False,
    model: Annotated[Path | None, typer.Option(metavar="RUN", help="The index's model, if it was moved.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page that works offline; replaces an earlier search page."),
    ] = None,
) -> None:
    """Find the items of an index that are most similar to words, an image, a sound, or several of them together.

    An image and a sound together are fused if the model was trained with a fusion. If the model was calibrated, items
    that do not match are marked.

    Examples:

        edgeglass search index/ "a red ball"

        edgeglass search index/ "a red ball" --dim 128 --candidates 200 --explain

        edgeglass search index/ photo.jpg bark.wav --modality text

        edgeglass search index/ --audio bark.wav --k 20 --html dogs.html
    """
    from clip_common.errors import printable
    from edgeglass.aligner.index import Index
    from edgeglass.aligner.query import parse_query

    items = parse_query(query or [], image=image, audio=audio)
    if html is not None:
        from edgeglass.report.pages import check_replaceable

        check_replaceable(html)
    index = Index.open(folder, model=model)
    hits = index.search(
        items,
        k,
        dim=dim,
        candidates=candidates,
        first=first,
        unique=NEAR if unique else None,
        modality=modality,
        where=where,
    )
    cli.print_table(
        ["", "similarity", "", "item"],
        [(str(rank), f"{hit.similarity:.3f}", hit.modality, _describe(hit, index)) for rank, hit in enumerate(hits, 1)],
        title=" + ".join(printable(item) for item in items),
    )
    if not any(hit.matches is not False for hit in hits):
        _say("nothing here: no item is similar enough to match")
    notes = []
    untrained = dim is not None and dim not in index.description.widths
    if explain or (untrained and index.description.store == "files"):
        with cli.progress("comparing with exact search"):
            found = index.explain(k, dim=dim, candidates=candidates, first=first, modality=modality)
        notes = [
            f"recall@{one.k} of exact search in {_plural(name, 2)}: {one.recall:.3f} ({one.low:.3f}–{one.high:.3f}, "
            f"{one.queries} queries)"
            for name, one in found.items()
        ]
    if untrained:
        notes.insert(0, f"the model was not trained at width {dim}, but at {_join(index.description.widths)}")
    for note in notes:
        _say(note)
    _say(f"{_count_items(index)} of {printable(index.root)}")
    if html is not None:
        _write_page(html, items, hits, index, note="; ".join(notes) or None)
        cli.print_files("page", [html])


def calibrate(
    run: RunArgument,
    folder: IndexArgument,
    absent: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Queries for what is not there: text (one a line), images, sounds, folders."),
    ],
    present: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Queries for what is there, to measure what is lost.")
    ] = None,
    background: Annotated[
        Path | None, typer.Option(metavar="INDEX", help="Index of the training set: judge similarities beside its own.")
    ] = None,
    target: Annotated[float, typer.Option(help="Largest share of absent queries that may find a match.")] = 0.05,
) -> None:
    """Fit the similarity below which `search` says that nothing matches, and store it with the model.

    Example:

        edgeglass calibrate runs/edgeglass/first index/ --absent absent.txt --present present.txt
    """
    from edgeglass.aligner.aligner import Aligner
    from edgeglass.aligner.calibration import calibrate as run_calibration
    from edgeglass.aligner.calibration import read_queries
    from edgeglass.aligner.index import Index

    queries = read_queries(absent), read_queries(present or [])
    index = Index.open(folder, aligner=Aligner.from_pretrained(run))
    with cli.progress("encoding queries") as progress:
        found = run_calibration(
            index,
            absent=queries[0],
            present=queries[1],
            background=None if background is None else Index.open(background),
            target=target,
            progress=progress,
        )
    rows = []
    for name, threshold in found.thresholds.items():
        pair, _, width = name.rpartition("@")
        query, _, items = pair.partition("-")
        rates = (threshold.false_accept, threshold.true_accept)
        shares = ["" if rate is None else f"{rate.share:.1%} ({rate.low:.1%}–{rate.high:.1%})" for rate in rates]
        rows.append((f"{query} → {items}", width, f"{threshold.value:.3f}", *shares))
    header = ["query → items", "width", "threshold", "false accepts", "true accepts"]
    cli.print_table(header, rows, title=f"thresholds of {index.aligner.name}, with 95 % intervals")
    _say(f"fitted to {len(queries[0]):,} absent queries in {_count_items(index)}")


def _write_page(
    file: Path, items: Sequence[str | Path], hits: Sequence["Hit"], index: "Index", *, note: str | None
) -> None:
    from edgeglass.aligner.items import find_modality
    from edgeglass.report.pages import PageHit, Query, write_page

    parts: dict[str, Any] = {find_modality(item): item for item in items}
    cuts = {hit.modality: hit.cut for hit in hits if hit.cut is not None}
    write_page(
        file,
        query=Query(words=parts.get("text"), image=parts.get("image"), audio=parts.get("audio")),
        hits=[
            PageHit(
                modality=hit.modality,
                similarity=hit.similarity,
                path=hit.path,
                text=hit.text,
                below_threshold=hit.matches is False,
                duplicates=hit.duplicates,
            )
            for hit in hits
        ],
        root=index.root,
        items=index.counts,
        model=index.description.name,
        note=note,
        nothing_below=min(cuts.values(), default=None),
    )


def _describe(hit: "Hit", index: "Index") -> str:
    from clip_common.errors import printable

    path = "" if hit.path is None else printable(hit.path.relative_to(index.root))
    shown = path if hit.text is None else f"{hit.text}  ({path})" if path else hit.text
    notes = [f"and {hit.duplicates} like it"] if hit.duplicates else []
    notes += ["no match"] if hit.matches is False else []
    return f"{shown}  [{', '.join(notes)}]" if notes else shown


def _parse_shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--shard {text}: expected i/n, such as 1/4")
    return int(number), int(count)


def _count_items(index: "Index") -> str:
    return ", ".join(f"{count:,} {_plural(modality, count)}" for modality, count in index.counts.items())


def _plural(modality: str, count: int) -> str:
    word = {"image": "image", "text": "text", "audio": "sound"}[modality]
    return word if count == 1 else f"{word}s"


def _join(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths))


def _say(line: str) -> None:
    console.print(line, soft_wrap=True)
