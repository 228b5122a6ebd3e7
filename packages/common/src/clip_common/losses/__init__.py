"""Contrastive losses on one tiled operation that never stores the B×B matrix of logits.

    from clip_common.losses import InfoNCE, LogitScale, contrastive_loss

    scale = LogitScale()                                     # learned, starts at 1/0.07
    loss = contrastive_loss(image_BD, text_BD, scale=scale(), form=InfoNCE())
    loss.backward(); optimizer.step(); scale.clamp_()

Files, from the inside out:

    logits         tiles of scale · cos(x_i, y_j) at one or several widths, and their gradients
    pairs          which pairs are positives, and which are negatives with what weight
    reductions     of a tile to rows and columns: log-sum-exp, or sums of softplus
    tiles          the operation: forward over all tiles, backward that recomputes them
    statistics     its results as differentiable vectors of length B            `pair_statistics`
    sigmoid        the same for the sigmoid loss                                `pair_softplus`
    infonce        the loss in both directions, across processes                `InfoNCE`, `contrastive_loss`
    forms          other losses, a few lines each                               `SigLIP`, `Decoupled`, …
    matryoshka     a form at several widths in one pass                         `Matryoshka`
    modalities     pairs of modalities; samples may lack some                  `PairwiseModalities`
    corpus         rows of a batch against a whole corpus                      `corpus_loss`
    cached         large batches in the memory of a small one                   `cached`
    distributed    rows of all processes, with gradients                        `gather_rows`
    temperature    the learned scale                                            `LogitScale`
"""

from clip_common.losses.cached import cached, embed_in_parts
from clip_common.losses.corpus import corpus_loss
from clip_common.losses.distributed import gather_rows
from clip_common.losses.forms import Boosted, Debiased, Decoupled, Guided, HardNegative, SigLIP
from clip_common.losses.infonce import Form, InfoNCE, Weighting, contrastive_loss
from clip_common.losses.matryoshka import Matryoshka
from clip_common.losses.modalities import ModalitiesOutput, PairwiseModalities
from clip_common.losses.sigmoid import pair_softplus
from clip_common.losses.statistics import Direction, PairStatistics, pair_statistics
from clip_common.losses.temperature import LogitScale

__all__ = [
    "Boosted",
    "Debiased",
    "Decoupled",
    "Direction",
    "Form",
    "Guided",
    "HardNegative",
    "InfoNCE",
    "LogitScale",
    "Matryoshka",
    "ModalitiesOutput",
    "PairStatistics",
    "PairwiseModalities",
    "SigLIP",
    "Weighting",
    "cached",
    "contrastive_loss",
    "corpus_loss",
    "embed_in_parts",
    "gather_rows",
    "pair_softplus",
    "pair_statistics",
]
