"""From the features of an encoder to the shared width."""

from typing import Literal

from torch import nn


def build_projector(
    kind: Literal["linear", "mlp"], *, width: int, embed_dim: int, hidden: int | None = None, dropout: float = 0.0
) -> nn.Sequential:
    """Return a map of features (…, F) to (…, D); it standardises them first, because encoders differ in scale.

    Args:
        kind: `linear`: one matrix. `mlp`: two with a GELU between them.
        width: F.
        embed_dim: D.
        hidden: Width of the MLP's hidden layer; None: 2·D.
        dropout: Before the last matrix, in training.
    """
    standardise = nn.LayerNorm(width, elementwise_affine=False)
    drop = [nn.Dropout(dropout)] if dropout else []
    if kind == "linear":
        return nn.Sequential(standardise, *drop, nn.Linear(width, embed_dim))
    hidden = hidden or 2 * embed_dim
    return nn.Sequential(standardise, nn.Linear(width, hidden), nn.GELU(), *drop, nn.Linear(hidden, embed_dim))
