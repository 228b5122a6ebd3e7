"""A trained model, for a person: encode, index a folder of images, search it by words or by an image.

N images, D the shared width.
"""

import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from clip_common.backbones import Tokenizer, behaviour, move
from clip_common.backbones.tokenizers import ClipTokenizer, SentenceTokenizer, TransformersTokenizer
from clip_common.devices import pick_device
from clip_common.features.jobs import in_threads
from clip_common.page import printable
from clip_common.reporting import Progress
from clipse.data import DataError
from clipse.data.images import decode
from clipse.index import Hit, ImageIndex, IndexFileError, Stamp, scan
from clipse.models.retrieval import RetrievalModel
from clipse.retriever.opening import model_folder

SECONDS_BETWEEN_SAVES = 120.0
"""A stored index is written this often while it grows: the most that a kill can cost."""


class Retriever:
    """Searches images with a trained model.

    Attributes:
        gallery: What `search` searches; None before `index` or `open_index`.
        skipped: Path → what is wrong with it, of the images that the last `index(on_error="skip")` left out.

    Example:
        retriever = Retriever.from_pretrained("runs/clipse/first")
        for hit in retriever.index("photos/").search("a dog in the snow", k=10):
            print(f"{hit.similarity:.3f} {hit.path}")
    """

    def __init__(self, model: RetrievalModel, *, device: str | torch.device | None = None) -> None:
        self.device = pick_device() if device is None else torch.device(device)
        self.model = model.eval().to(self.device)
        self.gallery: ImageIndex | None = None
        self.skipped: dict[str, str] = {}

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> "Retriever":
        """Load a run folder (its best weights) or a folder that `save_pretrained` wrote.

        Raises:
            ValueError: Neither, or a damaged one.
        """
        return cls(RetrievalModel.from_pretrained(model_folder(source)), device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model (not the index)."""
        self.model.save_pretrained(folder)

    @property
    def paths(self) -> list[Path]:
        """The indexed images."""
        return [] if self.gallery is None else self.gallery.paths

    @cached_property
    def fingerprint(self) -> str:
        """Names all that decides the vector of an image: the image tower, weights and all, and the preprocessing.

        Models with the same image tower share it, and so their indexes.
        """
        content = f"2 {behaviour(self.model.image_tower)} {self.model.bundle.preprocess.key}"
        return hashlib.sha256(content.encode()).hexdigest()

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image | str | Path], *, batch_size: int = 64) -> Tensor:
        """PIL images or files -> (N, D) unit vectors, float32 on the CPU.

        Raises:
            DataError: A file that is no readable image.
        """
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = [self.model.bundle.preprocess(_open(image)) for image in images[start : start + batch_size]]
            parts.append(self.model.encode_image(torch.stack(pixels).to(self.device)).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Texts -> (N, D) unit vectors, float32 on the CPU."""
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self.model.bundle.tokenizer(list(texts[start : start + batch_size]))
            parts.append(self.model.encode_text(move(tokens, self.device)).cpu())
        return torch.cat(parts)

    def encode_query(self, query: str | Path | Image.Image) -> Tensor:
        """Words (a str), or an image (a Path or a PIL image) -> (D,) unit vector.

        Warns when the model's tokenizer knows none of the words: the vector then says nothing about them.

        Raises:
            ValueError: No words.
            DataError: A file that is no readable image.
        """
        if not isinstance(query, str):
            return self.encode_image([query])[0]
        if not query.strip():
            raise ValueError("the query is empty: say in words what to look for, or name an image file")
        if _knows_nothing_of(query, self.model.bundle.tokenizer):
            warnings.warn(f"the model knows no word of {query!r}: what it finds says nothing about them", stacklevel=3)
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
        """Encode every image below a folder for `search`, or only what a stored index lacks.

        Args:
            folder: Searched to its full depth.
            store: File to keep the index in. Where it exists, images of the same size and time of change are taken
                from it, those that are gone are dropped, and it is written again if anything changed. None keeps the
                vectors in memory alone.
            on_error: What to do about an unreadable image: `raise`, or `skip`: leave it out and name it in `skipped`.
            batch_size: Images at a time.
            progress: Called with the number of images that were encoded, and that were to be.

        Raises:
            DataError: No such folder, no image in it, an unreadable image, or with `skip` nothing but those.
            IndexFileError: `store` is damaged, or the index of another model or folder.
        """
        root, file = Path(folder), None if store is None else Path(store)
        stamps = scan(root)
        kept = ImageIndex.empty(root, model=self.fingerprint, model_name=self.model.bundle.spec.name)
        former = kept
        if file is not None and file.exists():
            former = self._opened(file)
            if former.root != root.resolve():
                raise IndexFileError(f"{file} is the index of {former.root}, not of {root}: name another file for it")
            kept = replace(former, root=root).keeping(stamps)
        missing = {name: stamps[name] for name in sorted(stamps.keys() - set(kept.names))}
        gallery = self._encoded(missing, kept, file, on_error=on_error, batch_size=batch_size, progress=progress)
        if not len(gallery):
            raise DataError(
                f"{root}: none of its {len(stamps)} images can be read; {next(iter(self.skipped.values()))}"
            )
        if file is not None and (len(kept) < len(former) or len(gallery) > len(kept)):
            gallery.save(file)
        self.gallery = gallery
        return self

    def open_index(self, file: str | Path) -> "Retriever":
        """Search a stored index as it is, without a look at the folder it was made of.

        Raises:
            IndexFileError: Damaged, or the index of another model.
            FileNotFoundError: There is no such file.
        """
        self.gallery = self._opened(Path(file))
        return self

    def search(self, query: str | Path | Image.Image, k: int = 10) -> list[Hit]:
        """The k most similar images of the index: to words (a str), or to an image (a Path or a PIL image), best first.

        Every image is compared: the order is exact.

        Raises:
            ValueError: Nothing has been indexed, an empty query, or k below 1.
            DataError: A query that is no readable image.
        """
        if self.gallery is None:
            raise ValueError("nothing to search: call index(folder) first")
        return self.gallery.nearest(self.encode_query(query), k)

    def _opened(self, file: Path) -> ImageIndex:
        index = ImageIndex.open(file)
        index.require(model=self.fingerprint, model_name=self.model.bundle.spec.name, file=file)
        return index

    def _encoded(
        self,
        missing: Mapping[str, Stamp],
        kept: ImageIndex,
        file: Path | None,
        *,
        on_error: Literal["raise", "skip"],
        batch_size: int,
        progress: Progress | None,
    ) -> ImageIndex:
        """`kept` with what was missing; what there is when anything stops the work is kept in `file`."""
        self.skipped = {}
        fresh: list[tuple[dict[str, Stamp], Tensor]] = []  # pairs, so that Ctrl-C cannot part names from vectors
        saved = time.monotonic()

        def grown() -> ImageIndex:
            if not fresh:
                return kept
            stamps = {name: stamp for part, _ in fresh for name, stamp in part.items()}
            return kept.adding(stamps, torch.cat([vectors_BD for _, vectors_BD in fresh]))

        names = list(missing)
        try:
            for start in range(0, len(names), batch_size):
                batch = names[start : start + batch_size]
                pixels = {}
                for name, loaded in zip(batch, in_threads(self._loaded, [kept.root / n for n in batch]), strict=True):
                    if isinstance(loaded, Tensor):
                        pixels[name] = loaded
                    elif on_error == "raise":
                        raise loaded
                    else:
                        self.skipped[name] = str(loaded)
                if pixels:
                    with torch.inference_mode():
                        batch_B3HW = torch.stack(list(pixels.values())).to(self.device)
                        vectors_BD = self.model.encode_image(batch_B3HW).cpu()
                    fresh.append(({name: missing[name] for name in pixels}, vectors_BD))
                if progress is not None:
                    progress(min(start + batch_size, len(names)), len(names))
                if file is not None and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    grown().save(file)
                    saved = time.monotonic()
        except BaseException:
            if file is not None and fresh:
                grown().save(file)
            raise
        return grown()

    def _loaded(self, path: Path) -> Tensor | DataError:
        try:
            return self.model.bundle.preprocess(_open(path))
        except DataError as error:
            return error


def _knows_nothing_of(text: str, tokenizer: Tokenizer) -> bool:
    """Whether every token of a text is the one for unknown words. Byte-level tokenizers have none: they spell."""
    if isinstance(tokenizer, SentenceTokenizer):
        words = tokenizer.model.tokenizer
    elif isinstance(tokenizer, TransformersTokenizer):
        words = tokenizer.tokenizer
    else:
        words = getattr(tokenizer.encode, "tokenizer", None) if isinstance(tokenizer, ClipTokenizer) else None
    unknown = None if words is None else words.unk_token_id
    if unknown is None:
        return False
    ids = words(text, add_special_tokens=False)["input_ids"]
    tokens = zip(ids, words.convert_ids_to_tokens(ids), strict=True)
    return not any(id != unknown and token.strip("▁") for id, token in tokens)  # ▁ is SentencePiece's word boundary


def _open(image: Image.Image | str | Path) -> Image.Image:
    """RGB pixels, turned as EXIF says, as in training."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    path = Path(image)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror})") from error
    return decode(content, name=printable(path))
