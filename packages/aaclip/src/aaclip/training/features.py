"""Stage 1's frozen patches, computed once and kept on disk for a few augmented views of each image.

Shapes: N images, K views of each, B images of a batch, V levels, L patches, D shared width, P bytes of a mask.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aaclip.data import AnomalyDataset, Sample, collate
from aaclip.models import AnomalyModel
from clip_common import images
from clip_common.backbones.frozen import behaviour
from clip_common.reporting import Progress
from clip_common.runs import write_atomically

SPARE = 2**30
"""Bytes to leave free on the disk."""


class FrozenViews(Dataset[Sample]):
    """Samples whose images are already patches: in epoch e every image is shown in its view e mod K.

    Args:
        folder: Where the views are kept; missing ones are computed.
        dataset: Augmented samples by (seed, epoch, index); view k is what epoch k shows.
        model: The frozen tower.
        views: K.
        progress: Called as `progress(done, total)` while they are computed.

    Raises:
        ValueError: The disk has too little room; the message says how many bytes the views take.
    """

    def __init__(
        self,
        folder: Path,
        dataset: AnomalyDataset,
        model: AnomalyModel,
        *,
        views: int,
        progress: Progress | None = None,
    ) -> None:
        assert model.axis == "space"  # `Config` refuses the other: a row would depend on its neighbours in a batch
        self.dataset, self.views, self.epoch = dataset, views, 0
        spec, rows = model.bundle.image.spec, len(dataset) * self.views
        side = spec.image_size // spec.patch_size
        shape = (rows, len(model.levels), side * side, spec.embed_dim)
        key = self._key(model)
        patches, masks = folder / f"{key}.patches.npy", folder / f"{key}.masks.npy"
        if not (patches.exists() and masks.exists()):
            self._check_room(folder, size=2 * int(np.prod(shape)) + rows * dataset.size**2 // 8)
            with write_atomically(patches) as patch_file, write_atomically(masks) as mask_file:
                self._compute(patch_file, mask_file, shape, model, progress=progress)
        self.patches_NVLD: NDArray[np.float16] = np.load(patches, mmap_mode="r")
        self.masks_NP: NDArray[np.uint8] = np.load(masks, mmap_mode="r")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, and with it the view."""
        self.epoch = epoch % self.views

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of this epoch's view, without pixels."""
        record, side = self.dataset.records[index], self.dataset.size
        bits = np.unpackbits(self.masks_NP[index * self.views + self.epoch], count=side * side)
        return Sample(
            image_3HW=torch.empty(0),
            mask_HW=torch.from_numpy(bits.reshape(side, side).astype(bool)),
            mask_known=record.mask is not None or not record.anomalous,
            anomalous=record.anomalous,
            class_name=record.class_name,
            index=index,
            name=str(record.image),
        )

    def patches(self, indices_B: Tensor, *, epoch: int) -> list[Tensor]:
        """Return (B, L, D) float32 patches of the views that `epoch` shows, one tensor for each level."""
        rows = (indices_B.cpu() * self.views + epoch % self.views).numpy()
        patches_BVLD = torch.from_numpy(self.patches_NVLD[rows].astype(np.float32))
        return list(patches_BVLD.unbind(dim=1))

    @torch.no_grad()
    def _compute(
        self,
        patch_file: Path,
        mask_file: Path,
        shape: tuple[int, ...],
        model: AnomalyModel,
        *,
        progress: Progress | None,
    ) -> None:
        packed = (shape[0], -(-(self.dataset.size**2) // 8))
        patches_NVLD = open_memmap(patch_file, mode="w+", dtype=np.float16, shape=shape)
        masks_NP = open_memmap(mask_file, mode="w+", dtype=np.uint8, shape=packed)
        done = 0
        for view in range(self.views):
            self.dataset.set_epoch(view)
            for batch in DataLoader(self.dataset, batch_size=16, collate_fn=collate):
                levels = model.frozen_patches(batch.images_B3HW.to(model.device))
                rows = batch.indices_B.numpy() * self.views + view
                patches_NVLD[rows] = torch.stack(levels, dim=1).half().cpu().numpy()
                masks_NP[rows] = np.packbits(batch.masks_BHW.numpy().astype(bool).reshape(len(rows), -1), axis=1)
                done += len(rows)
                if progress is not None:
                    progress(done, shape[0])
        patches_NVLD.flush()
        masks_NP.flush()

    def _key(self, model: AnomalyModel) -> str:
        """Return a hash of everything that changes what the views hold."""
        files = [
            [_describe(record.image), _describe(record.mask), record.anomalous, record.class_name]
            for record in self.dataset.records
        ]
        augment = self.dataset.augment and [asdict(self.dataset.augment.config), self.dataset.augment.colour]
        content = {
            "version": 3,
            "pixels": images.VERSION,
            "tower": behaviour(model.image_tower),
            "surgery": model.vv_blocks,
            "levels": model.levels,
            "preprocess": [repr(self.dataset.preprocess), self.dataset.size],
            "augment": augment,
            "views": [self.views, self.dataset.seed],
            "files": files,
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    def _check_room(self, folder: Path, *, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size + SPARE > free:
            raise ValueError(
                f"stages.text.cache_features={self.views} takes {size / 2**30:.1f} GiB in {folder}, which has "
                f"{free / 2**30:.1f} GiB free: cache fewer views, or 0 to compute them in each epoch"
            )


def _describe(file: Path | None) -> list[str | int] | None:
    """Return path, size in bytes and time of the last change of a file; None if there is none."""
    if file is None:
        return None
    status = file.stat()
    return [str(file), status.st_size, status.st_mtime_ns]
