"""Features of frozen trunks, computed once per image or text and kept on disk.

A row is named by sha256 of the image's bytes (or of the text), and lies on a shelf named by everything else that it
depends on: the preprocessing or the tokenizer, the behaviour of the trunk as it is now, and the layers.
Whatever changes leads to another name, so a stale row is never served.

Shapes: N images or texts, F width of a trunk, K layers, T tokens.
"""

import logging
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clip_common.backbones.frozen import is_frozen
from clip_common.backbones.spec import Bundle
from clip_common.errors import DataError
from clip_common.features.jobs import (
    Image,
    Job,
    Unreadable,
    digest_of_image,
    digest_of_text,
    image_job,
    in_threads,
    name_of,
    text_job,
)
from clip_common.features.shards import DIGEST_BYTES, FeatureCacheError, Shelf, format_bytes
from clip_common.reporting import Progress

logger = logging.getLogger(__name__)


SHARD_ROWS = 512
SHARD_BYTES = 64 * 2**20
"""A shard is written after this many rows or bytes, whichever comes first: the most that a kill can cost."""
TOLERANCE = 1e-3
"""Largest deviation that `verify` takes for rounding (batches of another size), in units of the features' RMS."""


class FeatureCache:
    """Features of frozen trunks in a folder.

    Safe under several processes. Killed and called again it goes on where it was, with the same batches and so the same
    bits as if it had not been killed. Before it computes, it logs (INFO) what it will take on disk.

    Args:
        root: Folder, made when first needed.

    Attributes:
        skipped: Images that the last `image_features(on_error="skip")` left out.

    Example:
        cache = FeatureCache(Path("runs/cache"))
        image_NF = cache.image_features(bundle, sorted(Path("photos").glob("*.jpg")))
        image_ND = bundle.image_tower.head(image_NF)
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: list[Image] = []

    def image_features(
        self,
        bundle: Bundle,
        images: Sequence[Image],
        *,
        layers: Sequence[int] = (),
        batch_size: int = 64,
        progress: Progress | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Tensor:
        """What the image trunk yields for these images, computed where it is not kept yet.

        Args:
            bundle: Its `preprocess` and the trunk of its image tower. A trunk that trains is run afresh, with a
                warning, and nothing is kept.
            images: Files, or objects with a `name` and `read() -> bytes`. Equal ones are computed once.
            layers: Blocks, from 1, whose tokens are wanted in place of the pooled features.
            batch_size: Images at a time.
            progress: Called with the number of different images that are done, and of all.
            on_error: What to do about an unreadable image: `raise` (the rows before it are kept), or `skip`: leave its
                row out and name it in `skipped`.

        Returns:
            (N, F) float32 on the CPU, or (N, K, T, F) with `layers`.

        Raises:
            FeatureCacheError: An unreadable image, too little space on the disk, a damaged shard.
        """
        broken: set[bytes] = set()

        def unreadable(image: Image, digest: bytes, error: Exception) -> None:
            if on_error == "raise":
                named = isinstance(error, DataError)  # its line names the image already
                raise FeatureCacheError(
                    str(error) if named else f"{name_of(image)} is not an image that can be read: {error}"
                ) from error
            broken.add(digest)

        digests: list[bytes] = []
        for image, digest in zip(images, in_threads(digest_of_image, images), strict=True):
            if isinstance(digest, OSError):
                unreadable(image, b"", digest)
            digests.append(b"" if isinstance(digest, OSError) else digest)
        sources = {digest: image for digest, image in zip(digests, images, strict=True) if digest}
        read = self._fill(image_job(bundle, layers), sources, batch_size, progress, unreadable)
        self.skipped = [image for digest, image in zip(digests, images, strict=True) if digest in broken]
        return read([digest for digest in digests if digest not in broken])

    def text_features(
        self, bundle: Bundle, texts: Sequence[str], *, batch_size: int = 256, progress: Progress | None = None
    ) -> Tensor:
        """What the text trunk yields for these texts, computed where it is not kept yet.

        Args:
            bundle: Its `tokenizer` and the trunk of its text tower; as for `image_features`.
            texts: N texts. Equal ones are computed once.
            batch_size: Texts at a time; they are of like length, so that little is padded.
            progress: Called with the number of different texts that are done, and of all.

        Returns:
            (N, F) float32 on the CPU.

        Raises:
            FeatureCacheError: Too little space on the disk, a damaged shard.
        """
        digests = [digest_of_text(text) for text in texts]
        by_length = sorted(zip(digests, texts, strict=True), key=lambda pair: (len(pair[1]), pair[1]))
        return self._fill(text_job(bundle), dict(by_length), batch_size, progress, _never)(digests)

    def verify(
        self,
        bundle: Bundle,
        *,
        images: Sequence[Image] = (),
        texts: Sequence[str] = (),
        layers: Sequence[int] = (),
        sample: int = 16,
        seed: int = 0,
    ) -> float:
        """Compute a random sample of what is kept again.

        Args:
            bundle: As for `image_features` and `text_features`.
            images, texts: What to draw the sample from.
            layers: As for `image_features`.
            sample: Rows of images, and of texts, at most.
            seed: Draws the sample.

        Returns:
            The largest deviation, in units of the features' RMS: about 1e-6, since batches differ.

        Raises:
            FeatureCacheError: A deviation that is not rounding.
        """
        images_of = dict(zip(in_threads(digest_of_image, images), images, strict=True))
        texts_of = {digest_of_text(text): text for text in texts}
        return max(
            self._deviation(image_job(bundle, layers), images_of, sample=sample, seed=seed),
            self._deviation(text_job(bundle), texts_of, sample=sample, seed=seed),
        )

    def _deviation(self, job: Job, sources: Mapping[Any, Any], *, sample: int, seed: int) -> float:
        shelf, worst = Shelf(self.root, job.description), 0.0
        known = sorted(sources.keys() & shelf.index().keys())
        chosen = random.Random(seed).sample(known, min(sample, len(known)))

        def compare(digests: list[bytes], fresh: Tensor) -> None:
            nonlocal worst
            deviation = ((shelf.read(digests) - fresh).abs().max() / fresh.square().mean().sqrt()).item()
            worst = max(worst, deviation)
            if not deviation <= TOLERANCE:  # NaN included
                raise FeatureCacheError(
                    f"{shelf.folder} holds {job.what} that their trunk does not yield: "
                    "delete the folder, and they are computed again"
                )

        job.compute({name: sources[name] for name in chosen}, batch_size=sample, keep=compare, unreadable=_never)
        return worst

    def _fill(
        self,
        job: Job,
        sources: Mapping[bytes, Any],
        batch_size: int,
        progress: Progress | None,
        unreadable: Unreadable,
    ) -> Callable[[Sequence[bytes]], Tensor]:
        """Compute what is missing; returns how to read rows by their digests."""
        report = progress or (lambda done, total: None)
        if not is_frozen(job.trunk):
            warnings.warn(f"the trunk trains: its {job.what} are computed afresh and not kept", stacklevel=3)
            rows: dict[bytes, Tensor] = {}

            def remember(digests: list[bytes], features: Tensor) -> None:
                rows.update(zip(digests, features, strict=True))
                report(len(rows), len(sources))

            job.compute(sources, batch_size=batch_size, keep=remember, unreadable=unreadable)
            return lambda digests: torch.stack([rows[digest] for digest in digests]) if digests else job.no_rows()

        shelf = Shelf(self.root, job.description)
        kept = shelf.index()
        missing = {digest: source for digest, source in sources.items() if digest not in kept}
        done = len(sources) - len(missing)
        report(done, len(sources))
        if missing:
            needed = len(missing) * (DIGEST_BYTES + 4 * job.row_shape().numel())
            what = f"{len(missing):,} {job.what}"
            logger.info("%s take %s in %s", what, format_bytes(needed), shelf.folder)
            shelf.check_space(needed, what)
        shard = _Shard(shelf)

        def keep(digests: list[bytes], features: Tensor) -> None:
            nonlocal done
            shard.add(digests, features)
            done += len(digests)
            report(done, len(sources))

        try:
            job.compute(missing, batch_size=batch_size, keep=keep, unreadable=unreadable)
        finally:  # whatever stops the work, what was computed is kept
            shard.write()
        return lambda digests: shelf.read(digests) if digests else job.no_rows()


class _Shard:
    """Rows on their way to a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.digests: list[bytes] = []
        self.features: list[Tensor] = []

    def add(self, digests: list[bytes], features: Tensor) -> None:
        self.digests += digests
        self.features.append(features)
        if len(self.digests) >= SHARD_ROWS or sum(part.nbytes for part in self.features) >= SHARD_BYTES:
            self.write()

    def write(self) -> None:
        digests, features = self.digests, self.features
        self.digests, self.features = [], []  # gone even when the disk is full: not to be tried twice
        if digests:
            self.shelf.write(digests, torch.cat(features))


def _never(source: Any, _digest: bytes, error: Exception) -> None:
    raise FeatureCacheError(f"{source} cannot be read: {error}") from error
