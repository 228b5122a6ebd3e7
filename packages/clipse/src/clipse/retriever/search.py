"""Search a folder with any model, by words or by an image, and write the result as a page."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_common.images import IMAGE_SUFFIXES
from clip_common.index import VectorIndex
from clip_common.reporting import Reporter, silent
from clipse.data import DataError
from clipse.report.pages import check_replaceable, write_page
from clipse.retriever.opening import open_source
from clipse.retriever.retriever import Hit, Retriever


@dataclass(frozen=True)
class Found:
    """Result of `search_folder`.

    Attributes:
        query: Words, or the path of the query image.
        hits: The most similar images, best first.
        gallery: The index that was searched.
        skipped: Path below the folder → problem, of the images that could not be read.
        store: Folder of the index.
        page: The HTML page, if one was requested.
    """

    query: str | Path
    hits: list[Hit]
    gallery: VectorIndex
    skipped: dict[str, str]
    store: Path
    page: Path | None


def search_folder(
    source: str,
    query: str,
    folder: Path,
    *,
    k: int = 10,
    page: Path | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter = silent,
) -> Found:
    """Search a folder with a run, a saved model, or a model by name; the index is kept in the cache folder.

    Args:
        source: A run folder, a folder that `save_pretrained` wrote, or a value of `model.name`.
        query: An image file, or words.
        folder: The images, at any depth. Unreadable ones are left out.
        k: Number of images to return.
        page: HTML file to write.
        overrides: `model.pretrained=…`, `data.cache_dir=…` and the like.
        reporter: Shows progress.

    Raises:
        ValueError: One line: a query, model, folder or index that cannot be used.
    """
    asked = parse_query(query)
    if page is not None:
        check_replaceable(page)  # before the images are encoded
    opened = open_source(source, overrides=overrides)
    retriever = Retriever(opened.model)
    vector_D = retriever.encode_query(asked)
    store = index_folder(opened.config.cache_folder / "index", folder, retriever.fingerprint)
    batch_size = opened.config.data.batch_size
    with reporter("encoding images") as progress:
        retriever.index(folder, store=store, on_error="skip", batch_size=batch_size, progress=progress)
    assert retriever.gallery is not None
    hits = retriever.nearest(vector_D, k)
    if page is not None:
        write_page(page, query=asked, hits=hits, root=folder, images=len(retriever.gallery), model=opened.name)
    return Found(asked, hits, gallery=retriever.gallery, skipped=retriever.skipped, store=store, page=page)


def index_folder(cache: Path, root: Path, model: str) -> Path:
    """Return the folder that keeps the index of the images below `root` by the model of this fingerprint."""
    return cache / hashlib.sha256(os.fsencode(root.resolve()) + model.encode()).hexdigest()[:32]


def parse_query(query: str) -> str | Path:
    """Return a query as a Path if it names an existing file, else as words.

    Raises:
        DataError: It has the suffix of an image file, but there is no such file.
    """
    path = Path(query)
    try:
        is_file = path.is_file()
    except OSError:  # words too long for a name
        return query
    if not is_file and path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{query}: no such image: give an existing file, or words")
    return path if is_file else query
