"""How features are computed: sources to items in threads, items to rows through a frozen trunk, batch by batch.

Shapes: B of a batch, F width of a trunk, K layers, T tokens.
"""

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from clip_common.backbones.encoder import Encoder
from clip_common.backbones.frozen import behaviour
from clip_common.backbones.spec import Tokens, move
from clip_common.backbones.trunk import Trunk
from clip_common.errors import check_list, printable
from clip_common.features.shards import RowShelf, SequenceShelf, Shelf
from clip_common.file_facts import FileFacts

THREADS = min(8, os.cpu_count() or 1)
UNREADABLE = (OSError, ValueError)
"""What `Job.load` raises for a source that cannot be used."""
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)
"""What a damaged archive behind an `Encoded` raises."""

Given = TypeVar("Given")
Made = TypeVar("Made")


class Encoded(Protocol):
    """An image or a sound that is not a file of its own, such as a member of a tar shard.

    `read` is called from several threads at once, and twice for a source that is not cached yet.
    """

    @property
    def name(self) -> str: ...

    def read(self) -> bytes: ...


FeatureSource = Path | Encoded | str
"""A file, a member of an archive, or a text."""

Unreadable = Callable[[Any, bytes, Exception], None]
"""Called with a source that cannot be loaded, its digest and the error."""


@dataclass(frozen=True)
class Job:
    """One way of using the trunk of one encoder.

    Attributes:
        encoder: Its trunk is run in eval mode without gradients.
        layers: Blocks whose tokens are rows; none: pooled features are.
        description: Everything that rows depend on besides their sources.
    """

    encoder: Encoder
    layers: tuple[int, ...]
    description: Mapping[str, Any]

    @property
    def what(self) -> str:
        """Name of the rows, for messages."""
        return f"{self.encoder.spec.kind} features"

    @property
    def trunk(self) -> Trunk:
        """The encoder's trunk."""
        return self.encoder.tower.trunk

    def load(self, source: FeatureSource, digest: bytes) -> Any:
        """Return the item of a source; called in threads.

        Raises:
            OSError, ValueError: A source that cannot be used, or no longer has this digest.
        """
        content = read_content(source)
        if hash_content(content) != digest:
            raise OSError("it changed while it was being read")
        return self.encoder.feed.load(content, name=name_source(source))

    def make_inputs(self, items: list[Any]) -> Tokens:
        """Return the trunk's input for B items, on its device."""
        return move(self.encoder.feed.batch(items), _find_device(self.trunk))

    def run(self, items: list[Any]) -> Sequence[Tensor]:
        """Return the rows (F,), or (K, T, F) with layers, of B items: float32 on the CPU."""
        inputs = self.make_inputs(items)
        if not self.layers:
            return self.trunk.features(inputs).to("cpu", torch.float32).unbind()
        tokens = self.trunk(inputs, self.layers).layers
        return torch.stack([tokens[layer] for layer in self.layers], dim=1).to("cpu", torch.float32).unbind()

    def open_shelf(self, root: Path) -> Shelf:
        """Return the shelf of the rows."""
        return RowShelf(root, self.description)

    def find_row_bytes(self) -> int | None:
        """Return the size of a row; None if rows differ in length."""
        return self._run_example().nbytes

    def join(self, rows: Sequence[Tensor]) -> Any:
        """Return rows as the shelf does, without a shelf; there may be none."""
        return torch.stack(list(rows)) if rows else torch.empty(0, *self._run_example().shape)

    def compute(
        self,
        sources: Mapping[bytes, FeatureSource],
        *,
        batch_size: int,
        keep: Callable[[list[bytes], Sequence[Tensor]], None],
        unreadable: Unreadable,
    ) -> None:
        """Compute rows batch by batch, in the order of `sources`; the next batch loads while one runs.

        Args:
            sources: What to compute, by digest.
            batch_size: Sources at a time.
            keep: Called with the digests of a batch, and its rows.
            unreadable: Called with a source that cannot be loaded, which is then left out unless this raises.
        """
        todo = list(sources.items())
        chunks = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
        with ThreadPoolExecutor(THREADS) as pool:

            def start(number: int) -> list[Future[Any]]:
                chunk = chunks[number] if number < len(chunks) else []
                return [pool.submit(self.load, source, digest) for digest, source in chunk]

            loading = start(0)
            for number, chunk in enumerate(chunks):
                loaded, loading = loading, start(number + 1)
                digests, items = [], []
                for (digest, source), future in zip(chunk, loaded, strict=True):
                    try:
                        items.append(future.result())
                        digests.append(digest)
                    except UNREADABLE as error:
                        unreadable(source, digest, error)
                if items:
                    with inference(self.trunk):
                        rows = self.run(items)
                    keep(digests, rows)

    def _run_example(self) -> Tensor:
        with inference(self.trunk):
            return self.run([self.encoder.feed.example])[0]


class SequenceJob(Job):
    """The sequence of tokens of the trunk: rows (T, F) of different length."""

    @property
    def what(self) -> str:
        return f"{self.encoder.spec.kind} sequences"

    def run(self, items: list[Any]) -> list[Tensor]:
        """Return the rows (T, F) of B items, without padding: float32 on the CPU."""
        tokens_BTF, mask_BT = self.trunk.sequence(self.make_inputs(items))
        tokens_BTF, mask_BT = tokens_BTF.to("cpu", torch.float32), mask_BT.cpu()
        return [tokens_TF[mask_T] for tokens_TF, mask_T in zip(tokens_BTF, mask_BT, strict=True)]

    def open_shelf(self, root: Path) -> Shelf:
        return SequenceShelf(root, self.description)

    def find_row_bytes(self) -> None:
        return None

    def join(self, rows: Sequence[Tensor]) -> list[Tensor]:
        return list(rows)


def make_job(encoder: Encoder, layers: Sequence[int] = ()) -> Job:
    """Return the job of computing pooled features (F,), or the tokens (K, T, F) after the named blocks.

    Raises:
        ValueError: Layers of an encoder of something other than images.
    """
    if layers and encoder.spec.kind != "image":
        raise ValueError(f"layers={list(layers)}: {encoder.spec.name} encodes no images, leave layers out")
    return Job(encoder, tuple(layers), _describe(encoder, layers=list(layers)))


def make_sequence_job(encoder: Encoder) -> SequenceJob:
    """Return the job of computing the sequence of tokens (T, F) of the trunk."""
    return SequenceJob(encoder, (), _describe(encoder, rows="sequence"))


def _describe(encoder: Encoder, **use: object) -> dict[str, object]:
    """Return everything that rows depend on besides their sources; `use` is the way the trunk is used."""
    return {
        "version": 3,
        "kind": encoder.spec.kind,
        "feed": encoder.feed.key,
        "trunk": behaviour(encoder.tower.trunk),
        **use,
    }


def check_sources(encoder: Encoder, sources: Sequence[FeatureSource]) -> None:
    """Raise ValueError unless sources are texts for an encoder of texts, and files for any other."""
    check_list(sources, "sources")
    kind = encoder.spec.kind
    wanted = "texts (str)" if kind == "text" else "files (Path, or objects with a name and read())"
    for source in sources:
        if isinstance(source, str) != (kind == "text"):
            raise ValueError(f"{source!r}: an encoder of kind {kind} takes {wanted}, not {type(source).__name__}")


def name_source(source: FeatureSource) -> str:
    """Return the name of a source for messages."""
    if isinstance(source, str):
        return repr(source[:60])
    return printable(source) if isinstance(source, Path) else source.name


def read_content(source: FeatureSource) -> bytes | str:
    """Return the bytes of a file, or the text.

    Raises:
        OSError: It cannot be read.
    """
    if isinstance(source, str):
        return source
    try:
        return source.read_bytes() if isinstance(source, Path) else source.read()
    except DAMAGED as error:
        raise OSError(f"its archive is damaged: {error}") from error


def hash_content(content: bytes | str) -> bytes:
    """Return the sha256 of bytes or of a text."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()


def hash_source(source: FeatureSource, facts: FileFacts | None = None) -> bytes | OSError:
    """Return the sha256 of a source's content, or the error that keeps it from being read.

    Args:
        source: What to hash.
        facts: Hashes of files that were read before; a new one is added.
    """
    try:
        if facts is None or not isinstance(source, Path):
            return hash_content(read_content(source))
        return bytes.fromhex(facts.recall(source, lambda: hash_content(read_content(source)).hex()))
    except OSError as error:
        return error


def in_threads(function: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    """Return `[function(one) for one in given]`, for functions that wait for a disk."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, given))


@contextmanager
def inference(trunk: Trunk) -> Iterator[None]:
    """Run in eval mode without gradients or autocast, so that cached rows do not depend on the caller's context."""
    training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad(), torch.autocast(_find_device(trunk).type, enabled=False):
            yield
    finally:
        trunk.train(training)


def _find_device(trunk: Trunk) -> torch.device:
    return next(trunk.parameters()).device
