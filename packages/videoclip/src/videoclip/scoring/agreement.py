"""How well a map that the model made agrees with the clinician's, and how well a Gaussian in the centre does.

B clips, T, H, W the grid of the tokens, N = T·H·W cells.
"""

import torch
from torch import Tensor

from videoclip.data.controls import centre_prior
from videoclip.models import Output
from videoclip.models.pooling import correlate, resize_to_grid, token_energy

MEASURES = ("corr", "iou", "pointing")
"""Pearson's correlation; intersection over union of the cells above half; whether the hottest cell is one of them."""


def measure_agreement(made_B1THW: Tensor, map_BCTHW: Tensor) -> Tensor:
    """Return the agreement of maps with the clinicians', (B, 3) in the order of `MEASURES`; NaN for a constant map.

    The pointing game is that of Zhang et al., "Top-down neural attention by excitation backprop" (2016), without their
    tolerance of 15 pixels.

    Args:
        made_B1THW: Maps that the model made, of any scale.
        map_BCTHW: The clinicians', whose mean over channels is resized to the same grid.
    """
    a_B1THW, a_varies_B1 = resize_to_grid(map_BCTHW.mean(dim=1, keepdim=True), made_B1THW.shape[2:])
    e_B1THW, e_varies_B1 = resize_to_grid(made_B1THW, made_B1THW.shape[2:])
    a_BN, e_BN = a_B1THW.flatten(1), e_B1THW.flatten(1)
    inside_BN, above_BN = a_BN >= 0.5, e_BN >= 0.5
    union_B = (inside_BN | above_BN).sum(dim=1)
    found_B3 = torch.stack(
        [
            correlate(e_BN, a_BN),
            (inside_BN & above_BN).sum(dim=1) / union_B,
            inside_BN.gather(1, e_BN.argmax(dim=1, keepdim=True))[:, 0].float(),
        ],
        dim=1,
    )
    return torch.where((a_varies_B1 & e_varies_B1), found_B3, torch.nan)


def agreements(output: Output, map_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the agreement of the predicted map, or else of the energy of the ungated tokens, and of the centre prior.

    Both are (B, 3), see `measure_agreement`.
    """
    made = output.predicted_map
    if made is None:
        made = token_energy(output.video_tokens)
    centre = centre_prior(map_BCTHW[:, :1]).to(made)
    return measure_agreement(made, map_BCTHW), measure_agreement(centre, map_BCTHW)
