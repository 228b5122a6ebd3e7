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
from torch import Tensor, nn

from clip_common import images
from clip_common.backbones.frozen import behaviour
from clip_common.backbones.spec import Bundle, move
from clip_common.page import printable

THREADS = min(8, os.cpu_count() or 1)
UNREADABLE = (OSError, ValueError)
"""What `Job.load` raises for an image that cannot be used."""
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)
"""What the archive behind an `Encoded` raises where it is damaged."""

Given = TypeVar("Given")
Made = TypeVar("Made")


class Encoded(Protocol):
    """An image that is not a file of its own, such as a member of a tar shard.

    `read` is called from several threads at once, and twice for an image that is not kept yet.
    """

    @property
    def name(self) -> str: ...

    def read(self) -> bytes: ...


Image = Path | Encoded

Unreadable = Callable[[Any, bytes, Exception], None]
"""Told of a source that cannot be loaded, of its digest and of the error."""


@dataclass(frozen=True)
class Job:
    """One way of using one trunk.

    Attributes:
        what: For messages.
        trunk: Run in eval mode without gradients.
        description: Everything that the rows depend on, apart from what they are computed from.
        load: A source, and the digest that it should have, to an item; called in threads.
        run: B items to (B, …) rows.
        example: An item to learn the shape of a row from.
    """

    what: str
    trunk: nn.Module
    description: Mapping[str, Any]
    load: Callable[[Any, bytes], Any]
    run: Callable[[list[Any]], Tensor]
    example: Any

    def row_shape(self) -> torch.Size:
        """Shape of one row."""
        with inference(self.trunk):
            return self.run([self.example]).shape[1:]

    def no_rows(self) -> Tensor:
        """(0, …): what no sources yield."""
        return torch.empty(0, *self.row_shape())

    def compute(
        self,
        sources: Mapping[bytes, Any],
        *,
        batch_size: int,
        keep: Callable[[list[bytes], Tensor], None],
        unreadable: Unreadable,
    ) -> None:
        """Compute rows batch by batch, in the order of `sources`; the next batch loads while one runs.

        Args:
            sources: What to compute, by digest.
            batch_size: Sources at a time.
            keep: Given the digests of a batch, and its rows in float32 on the CPU.
            unreadable: Told of a source that cannot be loaded, which is then left out unless this raises.
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
                        rows = self.run(items).to("cpu", torch.float32)
                    keep(digests, rows)


def image_job(bundle: Bundle, layers: Sequence[int]) -> Job:
    """Pooled features (F,) of the image trunk, or the tokens (K, T, F) after the named blocks."""
    preprocess, trunk = bundle.preprocess, bundle.image_tower.trunk

    def load(image: Image, digest: bytes) -> Tensor:
        content = content_of(image)
        if hashlib.sha256(content).digest() != digest:
            raise OSError("it changed while it was being read")
        return preprocess(images.read_image(content, name=name_of(image)))

    def run(pixels: list[Tensor]) -> Tensor:
        images_B3HW = torch.stack(pixels).to(_device(trunk))
        if not layers:
            return trunk.features(images_B3HW)
        tokens = trunk(images_B3HW, tuple(layers)).layers
        return torch.stack([tokens[layer] for layer in layers], dim=1)

    return Job(
        what="image features",
        trunk=trunk,
        description={
            "version": 2,
            "of": "images",
            "reader": images.VERSION,
            "preprocess": preprocess.key,
            "layers": list(layers),
            "trunk": behaviour(trunk),
        },
        load=load,
        run=run,
        example=torch.zeros(3, preprocess.size, preprocess.size),
    )


def text_job(bundle: Bundle) -> Job:
    """Pooled features (F,) of the text trunk."""
    tokenizer, trunk = bundle.tokenizer, bundle.text_tower.trunk
    return Job(
        what="text features",
        trunk=trunk,
        description={"version": 2, "of": "texts", "tokenizer": tokenizer.key, "trunk": behaviour(trunk)},
        load=lambda text, _digest: text,
        run=lambda texts: trunk(move(tokenizer(texts), _device(trunk))),
        example="a",
    )


def name_of(image: Image) -> str:
    """Return the name of an image for messages."""
    return printable(image) if isinstance(image, Path) else image.name


def content_of(image: Image) -> bytes:
    """The encoded image.

    Raises:
        OSError: It cannot be read.
    """
    try:
        return image.read_bytes() if isinstance(image, Path) else image.read()
    except DAMAGED as error:
        raise OSError(f"its archive is damaged: {error}") from error


def digest_of_image(image: Image) -> bytes | OSError:
    """sha256 of the encoded image, or why it cannot be read."""
    try:
        return hashlib.sha256(content_of(image)).digest()
    except OSError as error:
        return error


def digest_of_text(text: str) -> bytes:
    """sha256 of the text."""
    return hashlib.sha256(text.encode()).digest()


def in_threads(function: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    """`[function(one) for one in given]`, for functions that wait for a disk."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, given))


@contextmanager
def inference(trunk: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no autocast: what is kept must not depend on where it was asked for."""
    training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad(), torch.autocast(_device(trunk).type, enabled=False):
            yield
    finally:
        trunk.train(training)


def _device(trunk: nn.Module) -> torch.device:
    return next(trunk.parameters()).device
