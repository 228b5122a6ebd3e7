"""A trained model in use: encode images and texts, index a folder of images, search it by words or by an image.

N images, D the shared width.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from clip_common.backbones import behaviour, move
from clip_common.backbones.tokenizers import knows_no_word
from clip_common.devices import pick_device
from clip_common.errors import check_list
from clip_common.features.jobs import in_threads
from clip_common.images import IMAGE_SUFFIXES, read_image, to_rgb
from clip_common.images import VERSION as READER_VERSION
from clip_common.index import VectorIndex, scan_folder
from clip_common.reporting import Progress
from clipse.data import DataError
from clipse.models.retrieval import RetrievalModel
from clipse.retriever.opening import open_model

SECONDS_BETWEEN_SAVES = 120.0
"""Interval at which a growing index is saved: the most work that a kill can lose."""


class Hit(NamedTuple):
    """One search result: an image file and its cosine similarity to the query, −1 to 1."""

    path: Path
    similarity: float


class Retriever:
    """Image search with a trained model.

    Attributes:
        gallery: The index that `search` searches; None before `index` or `open_index`.
        root: The folder of the indexed images.
        skipped: Path → problem, of the images that the last `index(on_error="skip")` left out.

    Example:
        retriever = Retriever.from_pretrained("runs/clipse/first")
        for hit in retriever.index("photos/").search("a dog in the snow", k=10):
            print(f"{hit.similarity:.3f} {hit.path}")
    """

    def __init__(self, model: RetrievalModel, *, device: str | torch.device | None = None) -> None:
        self.device = pick_device() if device is None else torch.device(device)
        self.model = model.eval().to(self.device)
        self.gallery: VectorIndex | None = None
        self.root = Path()
        self.skipped: dict[str, str] = {}

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> "Retriever":
        """Load a run folder (its best weights), a folder that `save_pretrained` wrote, or a CLIP by name.

        Args:
            source: A folder, or a value of `model.name`: `tiny`, `hf-hub:org/name`, `local-dir:/folder`, or an
                open_clip architecture with the tag of its weights, `ViT-B-32:openai`.
            device: Of the model; None: a GPU if available.

        Raises:
            ValueError: One line: none of these, a run without a model yet, or a damaged or older model.
        """
        return cls(open_model(source), device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model (not the index)."""
        self.model.save_pretrained(folder)

    @property
    def paths(self) -> list[Path]:
        """The indexed images, sorted by name."""
        return [] if self.gallery is None else [self.root / name for name in sorted(self.gallery.ids)]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what determines an image's vector: the image reader, the preprocessing, the image tower's weights.

        Models with the same image tower have the same fingerprint and share indexes.
        """
        content = f"3 {READER_VERSION} {behaviour(self.model.image_tower)} {self.model.bundle.preprocess.key}"
        return hashlib.sha256(content.encode()).hexdigest()

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image | str | Path], *, batch_size: int = 64) -> Tensor:
        """Encode PIL images or files to (N, D) unit vectors, float32 on the CPU.

        Raises:
            DataError: A file that is not a readable image.
            ValueError: A single image: give a list.
        """
        check_list(images, "images")
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = [self.model.bundle.preprocess(_open(image)) for image in images[start : start + batch_size]]
            parts.append(self.model.encode_image(torch.stack(pixels).to(self.device)).cpu())
        return torch.cat(parts) if parts else torch.empty(0, self.model.bundle.image.spec.embed_dim)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Encode texts to (N, D) unit vectors, float32 on the CPU.

        Raises:
            ValueError: A single text: give a list.
        """
        check_list(texts, "texts")
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self.model.bundle.tokenizer(list(texts[start : start + batch_size]))
            parts.append(self.model.encode_text(move(tokens, self.device)).cpu())
        return torch.cat(parts) if parts else torch.empty(0, self.model.bundle.text.spec.embed_dim)

    def encode_query(self, query: str | Path | Image.Image) -> Tensor:
        """Encode words (a str) or an image (a Path or a PIL image) to a (D,) unit vector.

        Warns if the model's tokenizer knows none of the words, because the results are then meaningless.

        Raises:
            ValueError: An empty query.
            DataError: A file that is not a readable image.
        """
        if not isinstance(query, str):
            return self.encode_image([query])[0]
        if not query.strip():
            raise ValueError("the query is empty: describe what to look for, or name an image file")
        if knows_no_word(self.model.bundle.tokenizer, query):
            warnings.warn(f"the model knows no word of {query!r}: the results are meaningless", stacklevel=3)
        return self.encode_text([query])[0]

    def index(
        self,
        folder: str | Path,
        *,
        store: str | Path | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> "Retriever":
        """Encode the images below a folder for `search`; with a stored index, only those it lacks.

        Args:
            folder: Folder of images, at any depth.
            store: Folder that keeps the index. If it has one, files of unchanged size and time are not encoded again,
                deleted files are removed, and the changes are written. None keeps the vectors in memory.
            on_error: `raise` stops at an unreadable image; `skip` leaves it out and names it in `skipped`.
            batch_size: Images encoded at a time.
            progress: Called with the number of images encoded so far, and to encode.

        Raises:
            DataError: No such folder, no image in it, an unreadable image, or with `skip` only unreadable images.
            VectorIndexError: `store` is damaged, belongs to another model or folder, or holds other files.
        """
        root = Path(folder)
        stamps = scan_folder(root, suffixes=IMAGE_SUFFIXES, what="image")
        gallery = self._open_or_create(root, store)
        changes = gallery.changes(stamps)
        gallery.delete([*changes.changed, *changes.gone])
        missing = {name: stamps[name] for name in sorted([*changes.new, *changes.changed])}
        self._encode_into(gallery, root, missing, on_error=on_error, batch_size=batch_size, progress=progress)
        if not len(gallery):
            raise DataError(
                f"{root}: none of its {len(stamps)} images can be read; {next(iter(self.skipped.values()))}"
            )
        if gallery.folder is not None:
            gallery.save()
        self.gallery, self.root = gallery, root
        return self

    def open_index(self, folder: str | Path) -> "Retriever":
        """Search a stored index without comparing it with the folder of its images.

        Raises:
            VectorIndexError: Damaged, or the index of another model.
            FileNotFoundError: There is no index.
        """
        gallery = VectorIndex.open(Path(folder))
        gallery.check_model(self.fingerprint, name=self.model.bundle.spec.name)
        self.gallery, self.root = gallery, Path(gallery.collection)
        return self

    def search(self, query: str | Path | Image.Image, k: int = 10) -> list[Hit]:
        """Return the k images most similar to words (a str) or to an image (a Path or a PIL image), best first.

        The search is exact: the query is compared with every image.

        Raises:
            ValueError: Nothing has been indexed, an empty query, or k below 1.
            DataError: A query that is not a readable image.
        """
        if self.gallery is None:
            raise ValueError("nothing to search: call index(folder) first")
        return self.nearest(self.encode_query(query), k)

    def nearest(self, vector_D: Tensor, k: int = 10) -> list[Hit]:
        """Return the k images most similar to a unit vector, best first; ties in the order of indexing.

        Raises:
            ValueError: Nothing has been indexed, or k below 1.
        """
        if self.gallery is None:
            raise ValueError("nothing to search: call index(folder) first")
        return [Hit(self.root / found.id, found.similarity) for found in self.gallery.nearest(vector_D, k)]

    def _open_or_create(self, root: Path, store: str | Path | None) -> VectorIndex:
        name, collection = self.model.bundle.spec.name, os.fspath(root.resolve())
        if store is None:
            return VectorIndex(model=self.fingerprint, model_name=name, collection=collection)
        return VectorIndex.open_or_create(Path(store), model=self.fingerprint, model_name=name, collection=collection)

    def _encode_into(
        self,
        gallery: VectorIndex,
        root: Path,
        missing: Mapping[str, str],
        *,
        on_error: Literal["raise", "skip"],
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        """Encode and add the missing images; save the finished part if an error or Ctrl-C interrupts."""
        self.skipped = {}
        names, encoded, saved = list(missing), 0, time.monotonic()
        try:
            for start in range(0, len(names), batch_size):
                batch = names[start : start + batch_size]
                pixels = {}
                for name, loaded in zip(batch, in_threads(self._preprocess, [root / n for n in batch]), strict=True):
                    if isinstance(loaded, Tensor):
                        pixels[name] = loaded
                    elif on_error == "raise":
                        raise loaded
                    else:
                        self.skipped[name] = str(loaded)
                if pixels:
                    with torch.inference_mode():
                        batch_B3HW = torch.stack(list(pixels.values())).to(self.device)
                        vectors_BD = self.model.encode_image(batch_B3HW)
                    gallery.add(list(pixels), vectors_BD, stamps=[missing[name] for name in pixels])
                    encoded += len(pixels)
                if progress is not None:
                    progress(min(start + batch_size, len(names)), len(names))
                if gallery.folder is not None and encoded and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    gallery.save()
                    saved = time.monotonic()
        except BaseException:
            if gallery.folder is not None and encoded:
                gallery.save()
            raise

    def _preprocess(self, path: Path) -> Tensor | DataError:
        try:
            return self.model.bundle.preprocess(_open(path))
        except DataError as error:
            return error


def _open(image: Image.Image | str | Path) -> Image.Image:
    """Return RGB pixels, turned as EXIF says."""
    if not isinstance(image, Image.Image | str | Path):
        raise DataError(f"a {type(image).__name__} is no picture: give files or PIL images (Image.fromarray(array))")
    return to_rgb(image) if isinstance(image, Image.Image) else read_image(Path(image))
