"""float32 attention under bf16 CPU autocast, where the backward pass of torch's own kernel is several times slower."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@contextmanager
def float32_cpu_attention() -> Iterator[None]:
    """Run `scaled_dot_product_attention` in float32 under CPU autocast while the block lasts.

    The matrix products around attention stay in bf16, so a training step of a small transformer takes about half the
    time of one in float32 (`benchmarks/cpu_autocast.py`). Nothing changes outside CPU autocast.
    """
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _in_float32, "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()  # torch has no public way to remove a kernel


def _in_float32(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *arguments: Any, **keywords: Any
) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        if torch.float64 in (query.dtype, key.dtype, value.dtype):  # autocast does not cast float64
            return scaled_dot_product_attention(query, key, value, attn_mask, *arguments, **keywords)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        return scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask, *arguments, **keywords
        )
