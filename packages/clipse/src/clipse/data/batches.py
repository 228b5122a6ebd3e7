"""Topical batches: part of each batch comes from one topic, which makes its negatives harder; and topics by k-means.

N images, D width of their features.
"""

import torch
from torch import Tensor
from torch.nn import functional

from clip_common.errors import DataError
from clip_common.loader import ShuffledBatchSampler

STARTS = 3
"""Restarts of k-means from different centres; the best result is kept."""


class TopicalBatchSampler(ShuffledBatchSampler):
    """Batches with a share of rows from one topic and the rest from all; the order depends on (seed, epoch) only.

    A batch is global: `batch_size` · `world` rows with one topic, dealt to the ranks in turn, because negatives are
    gathered from all of them. N ranks therefore see the batches that one rank with N · `batch_size` sees, split among
    them; ranks are disjoint and give the same number of batches. Each row appears once in an epoch, except those that
    `ShuffledBatchSampler` leaves out too: with `drop_last` the rows that do not fill a global batch (drawn anew each
    epoch, whatever their topic), otherwise those that cannot be dealt evenly, fewer than `world`.

    An epoch is made as follows. The rows of each topic are shuffled and cut into pieces of the share's size; the last
    piece of a topic may be shorter. As many pieces as there are batches are taken, longer ones first, at random among
    those of equal length; each opens one batch, in random order. All other rows are mixed and fill the batches. A share
    that is larger than its topic thus takes the whole topic and is filled with mixed rows. A share below half a row
    counts as none: these are the batches of `ShuffledBatchSampler`.

    Args:
        labels_N: Topic of each row of the dataset, from 0 (see `find_topics`).
        batch_size: Rows of a batch on one rank.
        fraction: Share of a batch from one topic, 0 to 1.
        seed: Together with the epoch and the topics it determines the order.
        drop_last: Leave out a last batch that is not full.
        rank: This process.
        world: Number of processes.

    Raises:
        ValueError: Not a single batch would result, or `fraction` is out of range.
    """

    def __init__(
        self,
        labels_N: Tensor,
        *,
        batch_size: int,
        fraction: float,
        seed: int = 0,
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction={fraction}: expected a share of a batch, from 0 to 1")
        super().__init__(len(labels_N), batch_size=batch_size, seed=seed, drop_last=drop_last, rank=rank, world=world)
        self.labels_N, self.fraction = labels_N, fraction

    def set_topics(self, labels_N: Tensor) -> None:
        """Replace the topics of the rows, from the next iteration on.

        Raises:
            ValueError: A different number of rows.
        """
        if len(labels_N) != len(self.labels_N):
            raise ValueError(
                f"topics of {len(labels_N)} rows for a set of {len(self.labels_N)}: the data have changed since they "
                "were found; start a new run"
            )
        self.labels_N = labels_N

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the rows of an epoch as consecutive global batches."""

        def shuffled(rows: Tensor) -> Tensor:
            return rows[torch.randperm(len(rows), generator=generator)]

        size = self.batch_size * self.world
        share = round(self.fraction * size)
        kept = shuffled(torch.arange(len(self.labels_N)))[: self.rows * self.world]
        if share == 0:
            return kept
        # pieces of one topic each, cut from the shuffled rows
        of_kept = self.labels_N[kept]
        clusters = kept[of_kept.argsort(stable=True)].split(of_kept.bincount().tolist())
        pieces = [piece for cluster in clusters if len(cluster) for piece in cluster.split(share)]
        # the longest pieces open the batches, in random order
        by_lot = shuffled(torch.arange(len(pieces))).tolist()
        longest = sorted(by_lot, key=lambda piece: -len(pieces[piece]))[: len(self)]
        openings = [pieces[longest[place]] for place in shuffled(torch.arange(len(self))).tolist()]
        sizes = [min(size, len(kept) - start) for start in range(0, len(kept), size)]
        openings[-1] = openings[-1][: round(self.fraction * sizes[-1])]  # the last batch may not be full

        # all other rows, mixed, fill the batches
        mixed = torch.ones(len(self.labels_N), dtype=torch.bool)
        mixed[torch.cat(openings)] = False
        rest = shuffled(kept[mixed[kept]]).split([a - len(b) for a, b in zip(sizes, openings, strict=True)])
        # shuffle inside each batch, so that every rank gets its part of the topic
        return torch.cat([shuffled(torch.cat(parts)) for parts in zip(openings, rest, strict=True)])


def find_topics(features_ND: Tensor, *, clusters: int, seed: int = 0) -> Tensor:
    """Group rows by the direction of their features: k-means (scikit-learn's, by mini-batches) over unit vectors.

    It runs on one thread, so that sums have one order: the same features and seed give the same topics.

    Args:
        features_ND: (N, D) float, such as the mean text features of each image's captions.
        clusters: Number of groups, at most N. A group may end up empty.
        seed: Seed of the centres and the mini-batches.

    Returns:
        (N,) long, the topic of each row, from 0 to `clusters` − 1.

    Raises:
        DataError: Fewer rows than clusters, or features that are not finite.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    check_clusters(clusters, images=len(features_ND))
    if not features_ND.isfinite().all():
        raise DataError("topics cannot be found: the text features contain NaN or infinity: lower optim.lr")
    unit_ND = functional.normalize(features_ND.float(), dim=1).cpu().numpy()
    with threadpool_limits(limits=1):
        found = MiniBatchKMeans(n_clusters=clusters, n_init=STARTS, random_state=seed % 2**32).fit(unit_ND)
    return torch.from_numpy(found.labels_).long()


def check_clusters(clusters: int, *, images: int) -> None:
    """Raise DataError if there are more clusters than images."""
    if clusters > images:
        raise DataError(
            f"data.topical.clusters={clusters} is more than the {images} training images: "
            f"set data.topical.clusters to at most {images}"
        )
