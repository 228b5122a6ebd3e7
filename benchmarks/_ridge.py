"""A ridge map from image features to text features: the baseline of the benchmarks on real captions.

Shapes: N images, M captions, F width of the image features, T width of the text features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn.functional import normalize

from clip_common.metrics import image_text_retrieval

PENALTIES = tuple(10.0**power for power in range(-3, 4))


@dataclass(frozen=True)
class Pairs:
    """Features of images and of their captions, of any length.

    Attributes:
        image_NF: One row an image.
        text_MT: One row a caption.
        owner_M: Image of each caption.
    """

    image_NF: Tensor
    text_MT: Tensor
    owner_M: Tensor

    def join(self, other: "Pairs") -> "Pairs":
        """Return both sets as one."""
        return Pairs(
            torch.cat([self.image_NF, other.image_NF]),
            torch.cat([self.text_MT, other.text_MT]),
            torch.cat([self.owner_M, other.owner_M + len(self.image_NF)]),
        )


@dataclass(frozen=True)
class Mapped:
    """Images and captions in the space of the text features, about the mean caption of the training set.

    Attributes:
        image_NT: Mapped images.
        text_MT: Captions.
        axes_TT: Principal axes of the training captions, in columns: prefixes of `x @ axes_TT` are nested.
    """

    image_NT: Tensor
    text_MT: Tensor
    axes_TT: Tensor


def fit_ridge(train: Pairs, penalty: float) -> tuple[Ridge, NDArray[np.float32]]:
    """Fit unit image features to the mean of an image's unit text features; return the map and the mean (T,) of these.

    The map's own `intercept_` is no mean: it also holds the mean image, which scikit-learn subtracts first.
    """
    text_MT = normalize(train.text_MT.float(), dim=-1).numpy()
    owner_M = train.owner_M.numpy()
    mean_NT = np.stack([text_MT[owner_M == row].mean(axis=0) for row in range(len(train.image_NF))])
    return Ridge(alpha=penalty).fit(normalize(train.image_NF.float(), dim=-1).numpy(), mean_NT), mean_NT.mean(axis=0)


def map_pairs(model: Ridge, mean_T: NDArray[np.float32], pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return mapped images and captions as directions about the mean caption of the training set."""
    mapped_NT = model.predict(normalize(pairs.image_NF.float(), dim=-1).numpy()) - mean_T
    centred_MT = normalize(pairs.text_MT.float(), dim=-1).numpy() - mean_T
    return torch.from_numpy(mapped_NT).float(), torch.from_numpy(centred_MT).float()


def map_by_ridge(splits: Mapping[str, Pairs]) -> Mapped:
    """Map the test split by the ridge whose penalty is the best on val, fitted on train and val together."""

    def score(penalty: float) -> float:
        image_NT, text_MT = map_pairs(*fit_ridge(splits["train"], penalty), splits["val"])
        return image_text_retrieval(image_NT, text_MT, splits["val"].owner_M).metrics["rsum"]

    best = max(PENALTIES, key=score)
    print(f"ridge penalty chosen on the {len(splits['val'].image_NF)} held-out training images: {best:g}")
    whole = splits["train"].join(splits["val"])
    model, mean_T = fit_ridge(whole, best)
    axes_TT = torch.linalg.svd(map_pairs(model, mean_T, whole)[1], full_matrices=False).Vh.T
    return Mapped(*map_pairs(model, mean_T, splits["test"]), axes_TT)
