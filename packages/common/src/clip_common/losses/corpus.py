"""A contrastive loss of the rows of a batch against columns that stand for a whole corpus.

Legend: B rows on this process, C columns of the corpus, D width, W widths at which the loss is taken.
"""

from numpy.typing import ArrayLike
from torch import Tensor
from torch import distributed as dist

from clip_common.losses.distributed import Processes
from clip_common.losses.infonce import Form, InfoNCE, add_widths, sum_losses
from clip_common.losses.statistics import as_pairs, check_pairs, directions, make_pairs


def corpus_loss(
    x_BD: Tensor | ArrayLike,
    y_CD: Tensor | ArrayLike,
    *,
    scale: Tensor | float,
    positive: tuple[Tensor | ArrayLike, Tensor | ArrayLike],
    exclude: tuple[Tensor | ArrayLike, Tensor | ArrayLike] | None = None,
    form: Form | None = None,
    tile: int | None = None,
) -> Tensor:
    """Compute the loss of each row against all columns, averaged over the rows; columns are no rows of their own.

    With several torch.distributed processes every process holds all columns and its own rows. The average over
    processes, of the losses and of their gradients, equals that of one process with all rows. Every process must call.

    Args:
        x_BD: Embeddings of a batch, normalised here. B may be 0, and may differ between processes.
        y_CD: Embeddings of the corpus; gradients flow into them if they have any.
        scale: One over the temperature.
        positive: (B,) and (C,) ids: columns with the id of a row are its positives. Rows without any are skipped.
        exclude: (B,) and (C,) ids: columns with the id of a row are not its negatives.
        form: A softmax form, at one width or several; None is `InfoNCE()`.
        tile: Rows and columns of a tile; None chooses a size.

    Returns:
        A scalar; 0 if no row has a positive.

    Raises:
        ValueError: Shapes do not match, or a sigmoid form.

    Equals:
        (corpus_loss(x, y) + corpus_loss(y, x)) / 2 is `contrastive_loss(x, y)` if the batch is the corpus.
    Cost:
        O(B + C + tile²) memory above the embeddings and their gradients.

    Example:
        >>> loss = corpus_loss(image_BD, every_caption_CD, scale=14.0, positive=(ids_B, ids_C))
    """
    form = form or InfoNCE()
    if form.base.sigmoid or form.base.guided:
        raise ValueError(
            f"{type(form.base).__name__} compares pairs both ways: corpus_loss takes forms such as InfoNCE"
        )
    x_BD, y_CD, hidden, paired = as_pairs(x_BD, y_CD, exclude=exclude, positive=positive)
    check_pairs(x_BD, y_CD, exclude=hidden, positive=paired, tile=tile)
    ranks = Processes.single(len(y_CD))
    widths = form.widths(x_BD.shape[1])
    rows, _ = directions(
        x_BD,
        y_CD,
        scale=scale,
        heads=tuple(head._replace(width=width) for width in sorted(widths) for head in form.base.heads),
        pairs=make_pairs(exclude=hidden, positive=paired, ranks=ranks),
        tile=tile,
    )
    sums = sum_losses(form.base, rows, widths=len(widths))
    count, world = sums[-1].detach(), 1
    if dist.is_available() and dist.is_initialized():
        count, world = count.clone(), dist.get_world_size()
        dist.all_reduce(count)
    # times the number of processes, over which DDP averages
    return world * add_widths(sums[:-1], widths) / count.clamp_min(1)
