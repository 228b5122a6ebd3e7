"""Topical batches: part of each batch about one thing, so that its negatives are harder; and how topics are found.

N images, D width of their features.
"""

import torch
from torch import Tensor
from torch.nn import functional

from clip_common.errors import DataError
from clip_common.loader import ShuffledBatchSampler

STARTS = 3
"""Times that k-means starts, from other centres; the best end is kept."""


class TopicalBatchSampler(ShuffledBatchSampler):
    """Batches of which a share comes from one topic and the rest from all; the order is a function of (seed, epoch).

    A batch is global: `batch_size` · `world` rows about one topic, dealt out to the ranks in turn, because negatives
    are gathered from all of them. So N ranks see the one-rank batches of N · `batch_size`, split; ranks are disjoint
    and give the same number of batches. Every row stands once in an epoch, but for what `ShuffledBatchSampler` leaves
    out too: with `drop_last` the rows that fill no global batch (drawn anew each epoch, whatever their topic), else
    those that cannot be dealt out evenly, fewer than `world`.

    How an epoch is made: the rows of each topic, shuffled, are cut into pieces of the share, the last one of what is
    left. As many pieces as there are batches are taken, whole ones before short ones and by lot among those of one
    length; each opens a batch, in random order. All other rows are mixed and fill the batches up. So a share that is
    wider than its topic takes the whole topic and is filled up from the mixed rest. A share of less than half a row is
    none: these are the batches of `ShuffledBatchSampler` itself.

    Args:
        labels_N: Topic of each row of the dataset, from 0 (see `topics`).
        batch_size: Rows of a batch on one rank.
        fraction: Share of a batch from one topic, 0 to 1.
        seed: With the epoch and the topics, the whole of the order.
        drop_last: Leave out a last batch that is not full.
        rank: This process.
        world: Number of processes.

    Raises:
        ValueError: Not one batch would come out, or a fraction out of range.
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
        """Other topics of the same rows, from the next iteration on.

        Raises:
            ValueError: Another number of rows.
        """
        if len(labels_N) != len(self.labels_N):
            raise ValueError(
                f"topics of {len(labels_N)} rows for a set of {len(self.labels_N)}: the data have changed since they "
                "were found; start a new run"
            )
        self.labels_N = labels_N

    def order(self, generator: torch.Generator) -> Tensor:
        """The rows of an epoch, global batch after global batch."""

        def shuffled(rows: Tensor) -> Tensor:
            return rows[torch.randperm(len(rows), generator=generator)]

        size = self.batch_size * self.world
        share = round(self.fraction * size)
        kept = shuffled(torch.arange(len(self.labels_N)))[: self.rows * self.world]
        if share == 0:
            return kept
        of_kept = self.labels_N[kept]
        clusters = kept[of_kept.argsort(stable=True)].split(of_kept.bincount().tolist())
        pieces = [piece for cluster in clusters if len(cluster) for piece in cluster.split(share)]
        by_lot = shuffled(torch.arange(len(pieces))).tolist()
        longest = sorted(by_lot, key=lambda piece: -len(pieces[piece]))[: len(self)]
        openings = [pieces[longest[place]] for place in shuffled(torch.arange(len(self))).tolist()]
        sizes = [min(size, len(kept) - start) for start in range(0, len(kept), size)]
        openings[-1] = openings[-1][: round(self.fraction * sizes[-1])]  # a last batch that is not full

        mixed = torch.ones(len(self.labels_N), dtype=torch.bool)
        mixed[torch.cat(openings)] = False
        rest = shuffled(kept[mixed[kept]]).split([a - len(b) for a, b in zip(sizes, openings, strict=True)])
        # shuffled once more: each rank gets its part of the topic, and the head of a batch is a sample of it
        return torch.cat([shuffled(torch.cat(parts)) for parts in zip(openings, rest, strict=True)])


def topics(features_ND: Tensor, *, clusters: int, seed: int = 0) -> Tensor:
    """Group rows by the direction of their features: k-means (scikit-learn's, by mini-batches) over unit vectors.

    On one thread, which adds up in one order: the same features and seed give the same topics.

    Args:
        features_ND: (N, D) float, such as the mean text features of each image's captions.
        clusters: Groups, at most N. One that ends empty is a number without rows.
        seed: Of the centres and the mini-batches.

    Returns:
        (N,) long, the topic of each row, from 0 to `clusters` − 1.

    Raises:
        DataError: Fewer rows than clusters, or features that are not finite.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    check_clusters(clusters, images=len(features_ND))
    if not features_ND.isfinite().all():
        raise DataError("topics cannot be found: the text features hold NaN or infinity; has the training diverged?")
    unit_ND = functional.normalize(features_ND.float(), dim=1).cpu().numpy()
    with threadpool_limits(limits=1):
        found = MiniBatchKMeans(n_clusters=clusters, n_init=STARTS, random_state=seed % 2**32).fit(unit_ND)
    return torch.from_numpy(found.labels_).long()


def check_clusters(clusters: int, *, images: int) -> None:
    """Raise DataError unless `images` can be put into that many topics."""
    if clusters > images:
        raise DataError(
            f"data.topical.clusters={clusters} is more than the {images} training images: "
            f"set data.topical.clusters to at most {images}"
        )
