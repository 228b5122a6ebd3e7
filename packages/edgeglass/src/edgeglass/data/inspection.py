"""Decode images and sounds in full, to find those that cannot be used and those that are silent or clipped."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from clip_common.errors import DataError
from clip_common.features.jobs import name_source
from clip_common.images import read_image
from clip_common.reporting import Progress
from clip_common.sounds import describe_sound
from edgeglass.data.records import Record, Source


@dataclass(frozen=True)
class Finding:
    """Result of decoding one image or sound.

    Attributes:
        modality: `image` or `audio`.
        source: The image or sound.
        problem: Why it cannot be used, in one line; None if it can.
        remark: What is odd about it although it can be used, in one line; None if nothing.
        digest: sha256 of its bytes; empty if they cannot be read.
    """

    modality: str
    source: Source
    problem: str | None = None
    remark: str | None = None
    digest: bytes = b""


def inspect(samples: Sequence[Record], *, progress: Progress | None = None) -> Iterator[Finding]:
    """Decode every image and sound once, in threads, and yield a finding for each in the order of the records."""
    sources: dict[tuple[str, Source], None] = {}
    for sample in samples:
        sources |= dict.fromkeys(sample.sources.items())
    with ThreadPoolExecutor() as pool:  # Pillow and libsndfile release the interpreter lock
        for done, finding in enumerate(pool.map(_inspect_source, sources), start=1):
            yield finding
            if progress is not None:
                progress(done, len(sources))


def find_copies(samples: Sequence[Record], findings: Sequence[Finding]) -> list[str]:
    """Return a line for each image or sound whose bytes are in two splits; silent sounds do not count."""
    digest_of = {finding.source: finding.digest for finding in findings if not finding.problem and not finding.remark}
    first: dict[bytes, tuple[str, str]] = {}
    copies: dict[bytes, str] = {}
    for sample in samples:
        for source in sample.sources.values():
            digest = digest_of.get(source)
            if digest is None:
                continue
            name, split = first.setdefault(digest, (name_source(source), sample.split))
            if split != sample.split:
                copies[digest] = f"{name_source(source)}: in {sample.split}, with the same content as {name} in {split}"
    return list(copies.values())


def _inspect_source(named: tuple[str, Source]) -> Finding:
    modality, source = named
    name = name_source(source)
    try:
        content = source.read_bytes() if isinstance(source, Path) else source.read()
    except OSError as error:
        return Finding(modality, source, problem=f"{name}: cannot be read ({error.strerror or error})")
    digest = hashlib.sha256(content).digest()
    try:
        if modality == "image":
            read_image(content, name=name)
            return Finding(modality, source, digest=digest)
        sound = describe_sound(content, name=name)
    except DataError as error:
        return Finding(modality, source, problem=str(error), digest=digest)
    remark = None
    if sound.is_silent:
        remark = f"{name}: silent, its RMS is {sound.rms:.1g} of full scale"
    elif sound.is_clipped:
        remark = f"{name}: clipped, {sound.full_scale:.1%} of its samples are at full scale"
    return Finding(modality, source, remark=remark, digest=digest)
