"""`clipse search`: words or an image, a model by whatever name, a folder; to the images that are most alike."""

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
    """What `clipse search` prints.

    Attributes:
        query: Words, or the image that was searched by.
        hits: Best first.
        gallery: The index that was searched.
        skipped: Path below the folder → what is wrong with it, of the images that could not be read.
        store: Folder of the index.
        page: The HTML page; None if none was asked for.
    """

    query: str | Path
    hits: list[Hit]
    gallery: VectorIndex
    skipped: dict[str, str]
    store: Path
    page: Path | None


def search_source(
    source: str,
    query: str,
    folder: Path,
    *,
    k: int = 10,
    page: Path | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter = silent,
) -> Found:
    """Search a folder with a run, a saved model, or a model by name; its index is kept in the cache of the runs.

    Args:
        source: A run folder, a folder that `save_pretrained` wrote, or what `model.name` takes.
        query: An image file, or words.
        folder: The images. Unreadable ones are left out.
        k: Images to return.
        page: HTML file to write.
        overrides: `model.pretrained=…`, `data.cache_dir=…` and the like.
        reporter: Shows progress.

    Raises:
        ValueError: One line for anything in the query, the model, the folder or the index that cannot be used.
    """
    asked = image_or_words(query)
    if page is not None:
        check_replaceable(page)  # told now, not once a thousand images are encoded
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


def image_or_words(query: str) -> str | Path:
    """What a query is: the name of an existing file is an image, anything else is words.

    Raises:
        DataError: It ends like the name of an image, and there is none.
    """
    path = Path(query)
    try:
        is_file = path.is_file()
    except OSError:  # words too long for a name
        return query
    if not is_file and path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{query}: there is no such image; give an existing file, or words")
    return path if is_file else query
