"""Short codes of vectors, as the first passes of `clip_common.index` make them.

Shapes: N vectors, d their width.
"""

from typing import Literal

import torch
from torch import Tensor

from clip_common.index.first import LEVELS, Rotation

Quantize = Literal["int8", "binary"]


def quantize_vectors(vectors_Nd: Tensor, quantize: Quantize) -> Tensor | tuple[Tensor, Tensor]:
    """Return int8 codes (N, d) with the scale (N,) of each vector, or packed signs as uint8.

    Args:
        vectors_Nd: float32 on the CPU.
        quantize: `int8`: code · scale is the vector up to half a scale. `binary`: signs after a random rotation, d
            padded to a power of two of at least 64.

    Raises:
        ValueError: Another kind of code.
    """
    if quantize == "int8":
        scale_N = vectors_Nd.abs().amax(dim=1) / LEVELS
        return (vectors_Nd / scale_N[:, None]).round().to(torch.int8), scale_N
    if quantize == "binary":
        return torch.from_numpy(Rotation(vectors_Nd.shape[1]).pack_signs(vectors_Nd).view("uint8"))
    raise ValueError(f"quantize={quantize!r}: expected int8, or binary")
