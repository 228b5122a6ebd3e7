"""One embedding of several modalities, for samples that may lack some of them.

Shapes: B batch, M fused modalities, D shared width.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clip_common.errors import check_list


class MultimodalFusion(nn.Module):
    """Embeddings of several modalities to one. A learned null embedding takes the place of one that a sample lacks.

    Inputs and null embeddings are normalised first, so that no modality counts for more because its embeddings are
    longer.

    Args:
        kind: `concat`: an MLP over all of them. `gated`: Σ_m g_m · x_m, with gates g = softmax of an MLP over all of
            them. `cross_attention`: a learned query that attends to them.
        width: D.
        modalities: Names of the M inputs, in order.
        heads: `cross_attention`: attention heads; they divide D.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        kind: Literal["concat", "gated", "cross_attention"],
        *,
        width: int,
        modalities: Sequence[str],
        heads: int = 4,
    ) -> None:
        check_list(modalities, "modalities", empty=False)
        super().__init__()
        self.kind = kind
        self.modalities = tuple(modalities)
        count = len(self.modalities)
        self.null_MD = nn.Parameter(torch.randn(count, width) * width**-0.5)
        if kind == "concat":
            self.mix = nn.Sequential(nn.Linear(count * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        elif kind == "gated":
            self.mix = nn.Sequential(nn.Linear(count * width, width), nn.GELU(), nn.Linear(width, count))
        else:
            if width % heads:
                raise ValueError(f"fusion.heads={heads} does not divide the width {width}: choose a divisor of {width}")
            self.role_MD = nn.Parameter(torch.randn(count, width) * width**-0.5)
            self.query_D = nn.Parameter(torch.randn(width) * width**-0.5)
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
            self.out = nn.Linear(2 * width, width)

    @property
    def name(self) -> str:
        """Name of the fused embedding, such as `image+audio`."""
        return "+".join(self.modalities)

    def forward(self, embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the fused embeddings (B, D), not normalised.

        Args:
            embeddings: (B, D) of each modality, of any length; one that is missing is absent in every sample.
            present: (B,) bools of modalities that some samples lack; their rows are then ignored.

        Raises:
            ValueError: No embedding of any of the modalities.
        """
        given = [embeddings[name] for name in self.modalities if name in embeddings]
        if not given:
            raise ValueError(f"no embedding to fuse: give at least one of {', '.join(self.modalities)}")
        present = present or {}
        every_B = torch.ones(len(given[0]), dtype=torch.bool, device=given[0].device)
        rows = []
        for name, null_D in zip(self.modalities, self.null_MD, strict=True):
            here_B = present.get(name, every_B) if name in embeddings else ~every_B
            # also where all samples have it: DDP waits for a gradient of every parameter
            rows.append(torch.where(here_B[:, None], embeddings.get(name, given[0]), null_D))
        x_BMD = normalize(torch.stack(rows, dim=1), dim=-1)
        if self.kind == "concat":
            # the mean of the inputs is a good answer from the start; the MLP learns what to add
            return x_BMD.mean(dim=1) + self.mix(x_BMD.flatten(1))
        if self.kind == "gated":
            return (self.mix(x_BMD.flatten(1)).softmax(dim=1)[..., None] * x_BMD).sum(dim=1)
        tokens_BMD = x_BMD + self.role_MD
        query_B1D = self.query_D.expand(len(x_BMD), 1, -1)
        attended_B1D, _ = self.attention(query_B1D, tokens_BMD, tokens_BMD, need_weights=False)
        return x_BMD.mean(dim=1) + self.out(self.mix(attended_B1D[:, 0]))
