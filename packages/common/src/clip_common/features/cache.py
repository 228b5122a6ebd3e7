"""Features of frozen trunks, computed once per image, text or sound and kept on disk.

A row is named by the sha256 of its source (the bytes of a file, or a text); hashes of files are remembered while their
size and time of change stay the same. It is kept on a shelf named by everything
else that it depends on: the preprocessing or the tokenizer, the behaviour of the trunk at the moment, and the layers.
Any change leads to another name, so a stale row is never served.

Shapes: N sources, F width of a trunk, K layers, T tokens.
"""

import logging
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clip_common.backbones.encoder import Encoder
from clip_common.backbones.frozen import is_frozen
from clip_common.errors import DataError
from clip_common.features.jobs import (
    FeatureSource,
    Job,
    Unreadable,
    check_sources,
    hash_source,
    in_threads,
    make_job,
    make_sequence_job,
    name_source,
)
from clip_common.features.shards import DIGEST_BYTES, FeatureCacheError, Shelf, format_bytes
from clip_common.file_facts import FileFacts
from clip_common.reporting import Progress

logger = logging.getLogger(__name__)

BATCH = {"text": 256, "image": 64, "audio": 16}
"""Sources at a time, by kind of encoder: sounds may be minutes long."""
SHARD_ROWS = 512
SHARD_BYTES = 64 * 2**20
"""A shard is written after this many rows or bytes, whichever comes first: the most that a kill can cost."""
TOLERANCE = 1e-3
"""Largest deviation that `verify` accepts as rounding (batches of another size), in units of the features' RMS."""


class FeatureCache:
    """Features of frozen trunks in a folder.

    Safe under several processes. Killed and called again, it continues where it was, with the same batches and so the
    same bits as without the kill. Before it computes, it logs (INFO) how much disk space it will take.

    Args:
        root: Folder, made when first needed.

    Attributes:
        skipped: Sources that the last call with `on_error="skip"` left out.

    Example:
        cache = FeatureCache(Path("runs/cache"))
        image_NF = cache.features(bundle.image, sorted(Path("photos").glob("*.jpg")))
        image_ND = bundle.image_tower.head(image_NF)
        text_MF = cache.features(bundle.text, ["a dog in the snow", "two cats"])
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: list[FeatureSource] = []

    def features(
        self,
        encoder: Encoder,
        sources: Sequence[FeatureSource],
        *,
        layers: Sequence[int] = (),
        batch_size: int | None = None,
        progress: Progress | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Tensor:
        """Return the features of these sources by an encoder's trunk; compute those that are not cached.

        Args:
            encoder: Its feed and the trunk of its tower. A trunk that trains is run anew, with a warning, and nothing
                is kept.
            sources: Texts for an encoder of texts; for others files, or objects with a `name` and `read() -> bytes`.
                Equal ones are computed once.
            layers: Blocks of an image trunk, from 1, whose tokens to return in place of the pooled features.
            batch_size: Sources at a time; None: 256 texts (of like length, so that little is padded), 64 images, 16
                sounds.
            progress: Called with the number of different sources that are done, and of all.
            on_error: What to do about an unreadable source: `raise` (the rows before it are kept), or `skip`: leave its
                row out and name it in `skipped`.

        Returns:
            (N, F) float32 on the CPU, or (N, K, T, F) with `layers`.

        Raises:
            FeatureCacheError: An unreadable source, too little space on the disk, a damaged shard.
            ValueError: Files for an encoder of texts or the reverse, or `layers` of an encoder of anything but images.
        """
        check_sources(encoder, sources)
        rows: Tensor = self._rows(make_job(encoder, layers), sources, batch_size, progress, on_error)
        return rows

    def sequences(
        self,
        encoder: Encoder,
        sources: Sequence[FeatureSource],
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> list[Tensor]:
        """Return the sequence of tokens of each source by an encoder's trunk; compute those that are not cached.

        Equals `trunk.sequence` without the padding. How much space the rows take is estimated from the first batch.

        Args:
            encoder: As for `features`; its trunk has sequences, as that of an audio encoder has.
            sources: As for `features`.
            batch_size: As for `features`.
            progress: As for `features`.
            on_error: As for `features`.

        Returns:
            N tensors (T, F) float32 on the CPU, T of each source. They are views of memory-mapped files, so that a
            collection larger than the memory can be used.

        Raises:
            FeatureCacheError, ValueError: As for `features`.
            BackboneError: The trunk has no sequences.
        """
        check_sources(encoder, sources)
        rows: list[Tensor] = self._rows(make_sequence_job(encoder), sources, batch_size, progress, on_error)
        return rows

    def _rows(
        self,
        job: Job,
        sources: Sequence[FeatureSource],
        batch_size: int | None,
        progress: Progress | None,
        on_error: Literal["raise", "skip"],
    ) -> Any:
        """Return the rows of readable sources, in order; put the others into `skipped`."""
        broken: set[bytes] = set()

        def unreadable(source: FeatureSource, digest: bytes, error: Exception) -> None:
            if on_error == "raise":
                _raise_unreadable(source, digest, error)
            broken.add(digest)

        kind = job.encoder.spec.kind
        facts = None if kind == "text" else FileFacts(self.root / "hashes.json")
        hashed = in_threads(partial(hash_source, facts=facts), sources)
        digests: list[bytes] = []
        for source, digest in zip(sources, hashed, strict=True):
            if isinstance(digest, OSError):
                unreadable(source, b"", digest)
            digests.append(b"" if isinstance(digest, OSError) else digest)
        pairs = [(digest, source) for digest, source in zip(digests, sources, strict=True) if digest]
        if kind == "text":
            pairs.sort(key=lambda pair: (len(str(pair[1])), str(pair[1])))
        read = self._fill(job, dict(pairs), batch_size or BATCH[kind], progress, unreadable)
        if facts is not None and is_frozen(job.trunk):
            facts.save()
        self.skipped = [source for digest, source in zip(digests, sources, strict=True) if digest in broken]
        return read([digest for digest in digests if digest not in broken])

    def verify(
        self,
        encoder: Encoder,
        sources: Sequence[FeatureSource],
        *,
        layers: Sequence[int] = (),
        sample: int = 16,
        seed: int = 0,
    ) -> float:
        """Compute a random sample of the cached rows again and return the largest deviation.

        Args:
            encoder: As for `features`.
            sources: What to draw the sample from.
            layers: As for `features`.
            sample: Rows at most.
            seed: Draws the sample.

        Returns:
            The deviation in units of the features' RMS: about 1e-6, since batches differ; 0 if nothing is cached.

        Raises:
            FeatureCacheError: A deviation that is not rounding.
        """
        check_sources(encoder, sources)
        digests = in_threads(hash_source, sources)
        known = {digest: one for digest, one in zip(digests, sources, strict=True) if isinstance(digest, bytes)}
        return self._deviation(make_job(encoder, layers), known, sample=sample, seed=seed)

    def _deviation(self, job: Job, sources: Mapping[Any, Any], *, sample: int, seed: int) -> float:
        shelf, worst = job.open_shelf(self.root), 0.0
        known = sorted(sources.keys() & shelf.index().keys())
        chosen = random.Random(seed).sample(known, min(sample, len(known)))

        def compare(digests: list[bytes], rows: Sequence[Tensor]) -> None:
            nonlocal worst
            fresh = torch.stack(list(rows))
            deviation = ((shelf.read(digests) - fresh).abs().max() / fresh.square().mean().sqrt()).item()
            worst = max(worst, deviation)
            if not deviation <= TOLERANCE:  # NaN included
                raise FeatureCacheError(
                    f"{shelf.folder} holds {job.what} that their trunk does not yield: "
                    "delete the folder, and they are computed again"
                )

        job.compute(
            {name: sources[name] for name in chosen}, batch_size=sample, keep=compare, unreadable=_raise_unreadable
        )
        return worst

    def _fill(
        self,
        job: Job,
        sources: Mapping[bytes, Any],
        batch_size: int,
        progress: Progress | None,
        unreadable: Unreadable,
    ) -> Callable[[Sequence[bytes]], Any]:
        """Compute the missing rows; return a function that reads rows by their digests."""
        report = progress or (lambda done, total: None)
        if not is_frozen(job.trunk):
            warnings.warn(f"the trunk trains: its {job.what} are computed anew and not kept", stacklevel=4)
            rows: dict[bytes, Tensor] = {}

            def remember(digests: list[bytes], computed: Sequence[Tensor]) -> None:
                rows.update(zip(digests, computed, strict=True))
                report(len(rows), len(sources))

            job.compute(sources, batch_size=batch_size, keep=remember, unreadable=unreadable)
            return lambda digests: job.join([rows[digest] for digest in digests])

        shelf = job.open_shelf(self.root)
        kept = shelf.index()
        missing = {digest: source for digest, source in sources.items() if digest not in kept}
        done = len(sources) - len(missing)
        report(done, len(sources))
        shard = _Shard(shelf)
        row_bytes = job.find_row_bytes() if missing else None

        def check_space(row_bytes: int) -> None:
            needed = len(missing) * (DIGEST_BYTES + row_bytes)
            what = f"{len(missing):,} {job.what}"
            logger.info("%s take %s in %s", what, format_bytes(needed), shelf.folder)
            shelf.check_space(needed, what)

        if row_bytes is not None:
            check_space(row_bytes)

        def keep(digests: list[bytes], rows: Sequence[Tensor]) -> None:
            nonlocal done, row_bytes
            if row_bytes is None:
                row_bytes = sum(row.nbytes for row in rows) // len(rows)
                check_space(row_bytes)
            shard.add(digests, rows)
            done += len(digests)
            report(done, len(sources))

        try:
            job.compute(missing, batch_size=batch_size, keep=keep, unreadable=unreadable)
        finally:  # keep what was computed, whatever stopped the work
            shard.write()
        return lambda digests: shelf.read(digests) if digests else job.join([])


class _Shard:
    """Computed rows that are not yet on a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.digests: list[bytes] = []
        self.rows: list[Tensor] = []

    def add(self, digests: list[bytes], rows: Sequence[Tensor]) -> None:
        self.digests += digests
        self.rows += rows
        if len(self.digests) >= SHARD_ROWS or sum(row.nbytes for row in self.rows) >= SHARD_BYTES:
            self.write()

    def write(self) -> None:
        digests, rows = self.digests, self.rows
        self.digests, self.rows = [], []  # dropped even if the disk is full, so that they are not tried twice
        if digests:
            self.shelf.write(digests, rows)


def _raise_unreadable(source: FeatureSource, _digest: bytes, error: Exception) -> None:
    named = isinstance(error, DataError)  # its line names the source already
    raise FeatureCacheError(str(error) if named else f"{name_source(source)} cannot be read: {error}") from error
