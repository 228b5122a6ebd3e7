"""Predictions of a model for a set of clips, as arrays: computed from batches, saved and loaded.

N clips, K classes, D values of an embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from clip_common.errors import DataError
from clip_common.loader import original_errors
from clip_common.reporting import Progress
from clip_common.runs import write_atomically
from videoclip.data.records import ClipRecord
from videoclip.models import Output, VideoAttentionCLIP, normalise
from videoclip.scoring.agreement import agreements
from videoclip.scoring.metrics import Floats, Ints, cosine

if TYPE_CHECKING:
    from videoclip.data.dataset import Batch


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of a model for N clips, with the clips' labels, subjects and maps.

    Attributes:
        logits_NK: float32.
        video_embed_ND, attn_embed_ND: Embeddings of the clips and of their maps, float32.
        label_N: Classes; -1 if unknown.
        subject_N: Equal for clips of one subject.
        map_N: Equal for clips whose maps have one origin.
        regions_N: Equal for clips in which the same regions were attended.
        agreement_N3: How well the map that the model makes agrees with the clip's (`agreement.MEASURES`); NaN without.
        centre_N3: The same of a Gaussian in the centre.
        valid_N: Whether the clip has a map that is not constant; other clips are left out of retrieval.
        clip_ids: Names of the clips.
    """

    logits_NK: NDArray[np.float32]
    video_embed_ND: NDArray[np.float32]
    attn_embed_ND: NDArray[np.float32]
    label_N: Ints
    subject_N: Ints
    map_N: Ints
    regions_N: Ints
    agreement_N3: NDArray[np.float32]
    centre_N3: NDArray[np.float32]
    valid_N: NDArray[np.bool_]
    clip_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clip_ids)

    @cached_property
    def probability_NK(self) -> Floats:
        """Softmax of the logits."""
        exp_NK = np.exp(self.logits_NK.astype(np.float64) - self.logits_NK.max(axis=1, keepdims=True))
        return exp_NK / exp_NK.sum(axis=1, keepdims=True)

    @cached_property
    def predicted_N(self) -> Ints:
        """The most likely class."""
        return self.logits_NK.argmax(axis=1)

    @cached_property
    def similarity_N(self) -> Floats:
        """Cosine of each clip with its own map; meaningless if `valid_N` is false."""
        return cosine(self.video_embed_ND, self.attn_embed_ND)

    @cached_property
    def judged_N(self) -> NDArray[np.bool_]:
        """Clips with a map and a label, whose similarity can be compared with their correctness."""
        return self.valid_N & (self.label_N >= 0)

    @classmethod
    def from_output(cls, output: Output, batch: "Batch") -> Self:
        """Return the predictions of one batch, which has embeddings, on the CPU."""

        def floats(tensor: torch.Tensor) -> NDArray[np.float32]:
            return tensor.detach().float().cpu().numpy()

        assert output.video_embed is not None
        assert output.attn_embed is not None
        ours_B3, centre_B3 = (
            torch.where(batch.valid_B[:, None], measured_B3, torch.nan)
            for measured_B3 in agreements(output, batch.map_BCTHW)
        )
        return cls(
            logits_NK=floats(output.logits),
            video_embed_ND=floats(output.video_embed),
            attn_embed_ND=floats(output.attn_embed),
            label_N=batch.label_B.cpu().numpy(),
            subject_N=batch.subject_B.cpu().numpy(),
            map_N=batch.map_B.cpu().numpy(),
            regions_N=batch.regions_B.cpu().numpy(),
            agreement_N3=floats(ours_B3),
            centre_N3=floats(centre_B3),
            valid_N=batch.valid_B.cpu().numpy(),
            clip_ids=tuple(batch.clip_ids),
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the predictions of several batches, in order, as one."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return cls(**arrays, clip_ids=tuple(name for part in parts for name in part.clip_ids))

    def save(self, path: Path) -> Path:
        """Write an .npz file, atomically."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with write_atomically(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays, clip_ids=np.array(self.clip_ids, dtype=np.str_))
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an .npz file that `save` wrote.

        Raises:
            DataError: No such file, or a file without predictions.
        """
        try:
            with np.load(path) as kept:
                arrays = {name: kept[name] for name in _ARRAYS}
                return cls(**arrays, clip_ids=tuple(kept["clip_ids"].tolist()))
        except (OSError, BadZipFile, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else "not a file of predictions"
            raise DataError(f"{path}: {reason}: run `videoclip test` on the run to write it") from error


def pool_predictions(parts: Sequence[Predictions], records: Iterable[ClipRecord]) -> Predictions:
    """Join the predictions of several models on clips of one set, for classification only.

    No clip keeps a valid map, because the models' embeddings have no common space.

    Args:
        parts: Predictions of each model, on different clips.
        records: All clips of the set; they number the subjects alike in all parts.
    """
    names = {record.clip_id: record.subject_id for record in records}
    numbers = {subject: number for number, subject in enumerate(sorted(set(names.values())))}
    return Predictions.join(
        [
            replace(
                part,
                subject_N=np.array([numbers[names[clip_id]] for clip_id in part.clip_ids]),
                valid_N=np.zeros(len(part), dtype=bool),
            )
            for part in parts
        ]
    )


_ARRAYS = tuple(field.name for field in fields(Predictions) if field.name != "clip_ids")


@torch.inference_mode()
def predict(
    model: VideoAttentionCLIP,
    loader: "DataLoader[Batch]",
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Predictions:
    """Run a model over batches in float32 and eval mode; restore its mode afterwards.

    Args:
        model: Must be on `device`.
        loader: Yields at least one batch, in a fixed order.
        device: Device of the model.
        progress: Called as `progress(done, total)`, in batches.
    """
    training = model.training
    model.eval()
    parts = []
    with original_errors():
        for batch in loader:
            moved = batch.to(device)
            output = model(
                normalise(moved.video_B3THW), moved.map_BCTHW, valid_B=moved.valid_B, guides_B=moved.guides_B
            )
            parts.append(Predictions.from_output(output, moved))
            if progress is not None:
                progress(len(parts), len(loader))
    model.train(training)
    return Predictions.join(parts)
