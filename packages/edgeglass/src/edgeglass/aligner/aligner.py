"""A trained alignment model in use: encode images, texts and sounds into the shared space, one at a time or mixed.

Shapes: N items, D shared width, d a prefix of it.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_common.backbones import TextEncoder, behaviour, fingerprint, move
from clip_common.backbones.tokenizers import knows_no_word
from clip_common.devices import pick_device
from clip_common.errors import check_list
from clip_common.features.jobs import THREADS, UNREADABLE
from clip_common.reporting import Progress
from edgeglass.aligner.codes import Quantize, quantize_vectors
from edgeglass.aligner.files import load_model, read_temperatures, save_model
from edgeglass.aligner.items import find_modality, load_item
from edgeglass.config import MODALITIES, Config
from edgeglass.models.alignment import MultimodalAlignmentModel


class Aligner:
    """Encodes images, texts and sounds with a trained model.

        aligner = Aligner.from_pretrained("runs/edgeglass/first")
        aligner.encode(texts=["a red ball", "a dog"])                # (2, D) unit vectors
        aligner.encode([Path("a.jpg"), "a dog", Path("bark.wav")])   # (3, D), in this order
        aligner.encode_query(Path("a.jpg"), Path("bark.wav"))        # (D,), the image with its sound

    Args:
        model: The trained model.
        config: What it was built from.
        device: Device to run on; default: a GPU if available.
        centre: Subtract each modality's mean; default: `embeddings.centre` of the configuration.
        temperatures: Of each pair, by its name; default: those of the model's loss.

    Attributes:
        folder: Folder of the saved model; None for one that was not loaded.
    """

    def __init__(
        self,
        model: MultimodalAlignmentModel,
        config: Config,
        *,
        device: str | torch.device | None = None,
        centre: bool | None = None,
        temperatures: dict[str, float] | None = None,
    ) -> None:
        self.device = pick_device() if device is None else torch.device(device)
        self.model = model.eval().to(self.device)
        self.config = config
        self.centre = config.embeddings.centre if centre is None else centre
        self.temperatures = read_temperatures(model) if temperatures is None else temperatures
        self.folder: Path | None = None

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device | None = None, centre: bool | None = None
    ) -> "Aligner":
        """Load a run folder (its best weights) or a folder that `save_pretrained` wrote.

        Raises:
            ValueError: One line: neither of these, a run without a model yet, a damaged or older model, an encoder that
                was moved or has other weights, or weights of another model.
        """
        model, config, temperatures, folder = load_model(source)
        aligner = cls(model, config, device=device, centre=centre, temperatures=temperatures)
        aligner.folder = folder.absolute()
        return aligner

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model: its configuration, and all weights that are not a frozen encoder's."""
        save_model(Path(folder), self.model, self.config, temperatures=self.temperatures)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that have an encoder."""
        return self.model.modalities

    @property
    def widths(self) -> tuple[int, ...]:
        """D and the narrower widths that were trained, decreasing."""
        return self.model.widths

    @property
    def name(self) -> str:
        """Name for messages: of the run, or of the folder."""
        if self.folder is None:
            return self.config.name or "the model"
        return self.folder.parent.name if self.folder.name == "model" else self.folder.name

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides an item's vector: encoders, feeds, heads, centring, context of sounds."""
        lines = [f"1 {self.centre}"]
        for modality in self.modalities:
            encoder = self.model.encoder_of(modality)
            mean = fingerprint({"mean": self.model.means[modality]}) if self.centre else ""
            lines.append(f"{modality} {behaviour(encoder)} {encoder.encoder.feed.key} {mean}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def encode(
        self,
        mixed: Sequence[Any] | None = None,
        *,
        images: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        audio: Sequence[Any] | None = None,
        dim: int | None = None,
        quantize: Quantize | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> Any:
        """Encode items to unit vectors.

        Args:
            mixed: Items of any modality. A str is a text; a Path, or an object with `name` and `read()`, is an image or
                a sound by its suffix; a PIL image is an image; a (T,) tensor or array of floats is a sound at 16 kHz,
                and (samples, rate) one at another rate.
            images: Files (str too) or PIL images.
            texts: Texts.
            audio: Files (str too), samples, or (samples, rate).
            dim: Keep the first `dim` numbers, at unit length; any from 1 to D.
            quantize: Return codes instead; see Returns.
            batch_size: Items encoded at a time.
            progress: Called with the number of items encoded so far, and to encode.

        Returns:
            (N, d) float32 on the CPU, in the order of the items. For several of `images`, `texts` and `audio`, a dict
            of these by modality (`image`, `text`, `audio`). With `quantize="int8"`, codes (N, d) int8 and the scale
            (N,) of each vector, whose product is the vector up to rounding. With `quantize="binary"`, the signs of the
            rotated vectors, packed into (N, ceil(d / 64)·8) uint8 (d rounded up to a power of two, at least 64): the
            share of different bits estimates the angle.

        Raises:
            ValueError: Nothing given, a mixed list and another, a modality that the model does not have, or a file that
                cannot be read.
        """
        named = {"image": images, "text": texts, "audio": audio}
        given: dict[str, Sequence[Any]] = {name: items for name, items in named.items() if items is not None}
        if (mixed is None) == (not given):
            raise ValueError("expected one mixed list, or some of images=…, texts=…, audio=…")
        for called, items in {"mixed": mixed, "images": images, "texts": texts, "audio": audio}.items():
            if items is not None:
                check_list(items, called)
        self._check_dim(dim)
        if mixed is not None:
            kinds = [find_modality(item) for item in mixed]
            places = {
                modality: [place for place, kind in enumerate(kinds) if kind == modality]
                for modality in MODALITIES
                if modality in kinds
            }
            lists = {modality: [mixed[place] for place in found] for modality, found in places.items()}
        else:
            lists = {modality: list(items) for modality, items in given.items()}
        for modality in lists:
            self.model.encoder_of(modality)  # before anything is encoded
        total, done = sum(map(len, lists.values())), 0
        vectors: dict[str, Tensor] = {}
        for modality, items in lists.items():
            parts = [torch.empty(0, self.model.width)]
            for rows, vectors_BD, failed in self.batches(modality, items, batch_size=batch_size):
                for error in failed.values():
                    raise error
                parts.append(vectors_BD)
                done += len(rows)
                if progress is not None:
                    progress(done, total)
            vectors[modality] = torch.cat(parts)
        if mixed is not None:
            joined_ND = torch.empty(len(mixed), self.model.width)
            for modality, found in places.items():
                joined_ND[found] = vectors[modality]
            return self._finish(joined_ND, dim, quantize)
        finished = {modality: self._finish(rows, dim, quantize) for modality, rows in vectors.items()}
        return finished if len(finished) > 1 else next(iter(finished.values()))

    def batches(
        self, modality: str, items: Sequence[Any], *, batch_size: int
    ) -> Iterator[tuple[list[int], Tensor, dict[int, Exception]]]:
        """Encode items of one modality batch by batch; the next batch loads in threads while one runs.

        Yields:
            The numbers of the items of a batch that could be read, their unit vectors (B, D) in float32 on the CPU, and
            the error of each of its items that could not.
        """
        check_list(items, "items")
        encoder = self.model.encoder_of(modality).encoder
        starts = range(0, len(items), batch_size)
        with ThreadPoolExecutor(THREADS) as pool:

            def load(start: int) -> list[Future[Any]]:
                return [pool.submit(load_item, encoder, item) for item in items[start : start + batch_size]]

            loading = load(0)
            for start in starts:
                loaded, loading = loading, load(start + batch_size)
                rows: list[int] = []
                inputs: list[Any] = []
                failed: dict[int, Exception] = {}
                for row, future in enumerate(loaded, start=start):
                    try:
                        inputs.append(future.result())
                        rows.append(row)
                    except UNREADABLE as error:
                        failed[row] = error
                pooled_BD = self._pool(modality, inputs)
                yield rows, self.model.embed(modality, pooled_BD, centre=self.centre).cpu(), failed

    def encode_query(self, *items: Any, dim: int | None = None) -> Tensor:
        """Encode one query to a (d,) unit vector: one item, or several that are searched for together.

        Several items of the modalities that the model fuses, one of each, give the fused embedding. Others give the
        normalised sum of their unit vectors.

        Warns if the model's tokenizer knows none of a text's words, because the results are then meaningless.

        Args:
            items: As in a mixed list.
            dim: Keep the first `dim` numbers, at unit length.

        Raises:
            ValueError: No item, an empty text, a modality that the model does not have, or a file that cannot be read.
        """
        if not items:
            raise ValueError("nothing to search for: give words, an image or a sound")
        kinds = [find_modality(item) for item in items]
        self._check_dim(dim)
        pooled: list[Tensor] = []
        for modality, item in zip(kinds, items, strict=True):
            encoder = self.model.encoder_of(modality).encoder
            if isinstance(encoder, TextEncoder):
                if not item.strip():
                    raise ValueError("the query is empty: describe what to look for, or name an image or a sound file")
                if knows_no_word(encoder.feed.tokenizer, item):
                    warnings.warn(f"the model knows no word of {item!r}: the results are meaningless", stacklevel=2)
            pooled.append(self._pool(modality, [load_item(encoder, item)]))
        fusion = self.model.fusion
        if fusion is not None and len(items) > 1 and sorted(kinds) == sorted(fusion.modalities):
            with torch.inference_mode():
                fused_1D = fusion(dict(zip(kinds, pooled, strict=True)))
                vector_1D = self.model.embed(fusion.name, fused_1D, centre=self.centre)
        else:
            units = [self.model.embed(*pair, centre=self.centre) for pair in zip(kinds, pooled, strict=True)]
            vector_1D = units[0] if len(units) == 1 else normalize(torch.stack(units).sum(dim=0), dim=-1)
        return self._finish(vector_1D.cpu(), dim, None)[0]

    @torch.inference_mode()
    def _pool(self, modality: str, inputs: list[Any]) -> Tensor:
        """Return the embeddings (B, D) of items that were loaded, not normalised."""
        if not inputs:
            return torch.empty(0, self.model.width, device=self.device)
        encoder = self.model.encoder_of(modality)
        pooled_BD: Tensor = encoder(move(encoder.encoder.feed.batch(inputs), self.device)).pooled
        return pooled_BD.float()

    def _check_dim(self, dim: int | None) -> None:
        if dim is not None and not 1 <= dim <= self.model.width:
            raise ValueError(f"dim={dim}: expected 1 to {self.model.width}, the width of the embeddings")

    def _finish(self, vectors_ND: Tensor, dim: int | None, quantize: Quantize | None) -> Any:
        if dim is not None and dim < self.model.width:
            vectors_ND = normalize(vectors_ND[:, :dim], dim=-1)
        if quantize is None:
            return vectors_ND.clone()  # no inference tensor, which no later autograd could use
        return quantize_vectors(vectors_ND, quantize)


def describe_query(kinds: Sequence[str]) -> str:
    """Return the name of a query of these modalities, such as `text` or `image+audio`."""
    return "+".join(modality for modality in MODALITIES if modality in kinds)
