"""Near-duplicates among ranked results."""

from torch import Tensor
from torch.nn import functional


def drop_near_duplicates(ranked_KD: Tensor, threshold: float, *, k: int | None = None) -> dict[int, int]:
    """Keep each vector whose cosine with every better one that was kept is below `threshold`.

    Args:
        ranked_KD: (K, D) vectors of results, best first.
        threshold: Smallest cosine of near-duplicates.
        k: Stop once this many are kept; None for all.

    Returns:
        The places of the kept vectors, in order, each with the number of later ones that were dropped because it was
        the first kept vector that they are near to; those after the last kept vector are not counted if k is reached.
    """
    near_KK = functional.normalize(ranked_KD, dim=1)
    near_KK = near_KK @ near_KK.T >= threshold
    kept: dict[int, int] = {}
    for place in range(len(ranked_KD)):
        original = next((other for other in kept if near_KK[place, other]), None)
        if original is not None:
            kept[original] += 1
        else:
            kept[place] = 0
            if len(kept) == k:
                break
    return kept
