"""Large contrastive batches in the memory of a small one."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Inputs = Tensor | Mapping[str, Tensor]
Encoder = Callable[[Any], Tensor]


def cached(loss: Callable[..., Any], *, mini_batch: int) -> Callable[..., Any]:
    """Return `loss` over embeddings that are computed one mini-batch at a time, and again in the backward.

    Activations of only one mini-batch exist at a time, while the loss still compares every row with every other. The
    second computation replays the random state and autocast of the first, so dropout agrees. Autograd sees one graph in
    which each parameter receives its gradient once, after all mini-batches. So DDP synchronises once without `no_sync`,
    and Lightning's backward, gradient scalers and accumulation work unchanged.

    Args:
        loss: Called with the embeddings of every encoder, in order, and keywords; its result is returned.
        mini_batch: Rows per encoder call.

    Returns:
        A function of (encoder, inputs) pairs and the loss's keywords. Inputs are a tensor, or a mapping of tensors
        (such as a tokenizer's), with rows along the first dimension.

    Equals:
        `loss(encoder(inputs), …)`, for encoders that treat rows one by one (not batch normalisation).
    Cost:
        One more forward of the encoders.
    Reference:
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (GradCache), 2021.

    Example:
        >>> loss = cached(InfoNCE(), mini_batch=64)
        >>> loss((image_tower, images_B3HW), (text_tower, tokens_BL), scale=scale()).backward()
    """

    def compute(*encoded: tuple[Encoder, Inputs], **keywords: Any) -> Any:
        return loss(*(embed_in_parts(encoder, inputs, mini_batch) for encoder, inputs in encoded), **keywords)

    return compute


def embed_in_parts(encoder: Encoder, inputs: Inputs, mini_batch: int) -> Tensor:
    """Compute embeddings (B, D) one mini-batch at a time, and again in the backward, as `cached` does.

    Under `torch.no_grad`, or if one mini-batch holds all rows, nothing is computed twice.
    """
    parts = list(_parts(inputs, mini_batch))
    if len(parts) == 1:
        return encoder(parts[0])
    return torch.cat([checkpoint(encoder, part, use_reentrant=False) for part in parts])


def _parts(inputs: Inputs, size: int) -> Iterator[Inputs]:
    if isinstance(inputs, Tensor):
        yield from inputs.split(size)
        return
    columns = {name: tensor.split(size) for name, tensor in inputs.items()}
    for parts in zip(*columns.values(), strict=True):
        yield dict(zip(columns, parts, strict=True))
