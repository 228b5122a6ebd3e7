"""From records to samples to batches.

Shapes: B images in a batch, H = W = `size` pixels a side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from aaclip.data.augment import Augment, squash
from aaclip.data.records import Record
from clip_common.images import read_image, read_mask
from clip_common.loader import epoch_seed


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, ready for the model.

    Attributes:
        image_3HW: Float, preprocessed.
        mask_HW: Bool, True on the defect; all False for a normal picture, and for one without a known mask.
        mask_known: True if `mask_HW` says where the defect is: False for an anomalous picture without a mask.
        anomalous: The label.
        class_name: The class.
        index: Position in the dataset.
        name: The file, for messages.
    """

    image_3HW: Tensor
    mask_HW: Tensor
    mask_known: bool
    anomalous: bool
    class_name: str
    index: int
    name: str


@dataclass(slots=True)
class Batch:
    """Samples stacked.

    Attributes:
        images_B3HW: Float.
        masks_BHW: Float, 1 on the defect.
        masks_known_B: Bool, see `Sample.mask_known`.
        anomalous_B: Long, 0 normal, 1 anomalous.
        class_names: B class names.
        indices_B: Long, positions in the dataset.
        names: B file names.
    """

    images_B3HW: Tensor
    masks_BHW: Tensor
    masks_known_B: Tensor
    anomalous_B: Tensor
    class_names: list[str]
    indices_B: Tensor
    names: list[str]


class AnomalyDataset(Dataset[Sample]):
    """One sample for each record; augmentation is a function of (seed, epoch, index) alone.

    Args:
        records: The pictures.
        preprocess: RGB picture of `size` x `size` pixels -> (3, size, size) float.
        size: Pixels a side.
        seed: Root of all randomness.
        augment: Random views of the same `size`; None only resizes.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        preprocess: Callable[[Image.Image], Tensor],
        size: int,
        seed: int,
        augment: Augment | None = None,
    ) -> None:
        self.records, self.preprocess, self.size, self.seed, self.augment = records, preprocess, size, seed, augment
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, and with it the views."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of a record.

        Raises:
            DataError: The picture or its mask cannot be read, or they differ in size.
        """
        record = self.records[index]
        image = read_image(record.image)
        # the label decides: the mask of a normal picture is ignored
        masked = record.anomalous and record.mask is not None
        mask_HW = read_mask(record.mask, size=image.size) if masked and record.mask else None
        if self.augment is None:
            image, mask_HW = squash(image, mask_HW, side=self.size)
        else:
            seed = epoch_seed(epoch_seed(self.seed, self.epoch), index)
            image, mask_HW = self.augment(image, mask_HW, torch.Generator().manual_seed(seed))
        return Sample(
            image_3HW=self.preprocess(image),
            mask_HW=torch.from_numpy(mask_HW),
            mask_known=masked or not record.anomalous,
            anomalous=record.anomalous,
            class_name=record.class_name,
            index=index,
            name=str(record.image),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch."""
    return Batch(
        images_B3HW=torch.stack([sample.image_3HW for sample in samples]),
        masks_BHW=torch.stack([sample.mask_HW for sample in samples]).float(),
        masks_known_B=torch.tensor([sample.mask_known for sample in samples]),
        anomalous_B=torch.tensor([sample.anomalous for sample in samples]).long(),
        class_names=[sample.class_name for sample in samples],
        indices_B=torch.tensor([sample.index for sample in samples]),
        names=[sample.name for sample in samples],
    )
