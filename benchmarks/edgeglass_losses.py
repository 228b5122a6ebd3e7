"""Losses of edgeglass: Matryoshka at five widths beside sentence-transformers, and negatives from the whole corpus.

    uv run python benchmarks/edgeglass_losses.py            # about two minutes on two cores
    uv run python benchmarks/edgeglass_losses.py --quick    # small: a smoke test that compares results

Matryoshka: AlignmentLoss at D and four widths below it, against its own full width alone, and MatryoshkaLoss around
MultipleNegativesRankingLoss (both ways) against its own full width alone. Both libraries' losses and gradients are
asserted to agree. Aim: at most 1.35 times the full width alone at B=1024, D=2048.

Corpus: one step of a batch of 128 against a training set of 3,000 images and 3,000 captions with cached features of
width 768: project all of both by an MLP to D=512 in parts, compute the loss at all widths, backward. Memory is the peak
above features and weights, in a process of its own. Aim: at most 1 s and 400 MiB.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _measure import PeakMemory, alternate, arm_in_own_process, report
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgeglass.config import TextConfig
from edgeglass.models.encoders import ProjectionHead
from edgeglass.training.losses import AlignmentLoss, Columns, CorpusAlignmentLoss

TEMPERATURE = 0.07
PART = 1024
"""Items of the corpus projected at a time; their activations are computed again in the backward."""


class Given(nn.Module):
    """A model of sentence-transformers whose embeddings are its inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def get_embedding_dimension(self) -> int:
        return self.width

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["given"]}


def make_inputs(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Return two (rows, width) tensors that require gradients, correlated row by row."""
    torch.manual_seed(0)
    x = torch.randn(rows, width)
    return x.requires_grad_(), (x.detach() + 2 * torch.randn(rows, width)).requires_grad_()


def build_ours(dims: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return our loss of x and y at the full width and at `dims` below it."""
    loss = AlignmentLoss(dims=dims, temperature=TEMPERATURE)
    return lambda x, y: loss({"image": x, "text": y}).loss


def build_theirs(widths: tuple[int, ...]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return sentence-transformers' loss of x and y at these widths, the full one first."""
    model: Any = Given(widths[0])
    both: Any = ("query_to_doc", "doc_to_query")
    inner = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, directions=both, partition_mode="per_direction")
    loss = MatryoshkaLoss(model, inner, list(widths)) if len(widths) > 1 else inner
    return lambda x, y: loss([{"given": x}, {"given": y}], torch.empty(0))


def run_step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Return the loss and its gradients by `x` and `y`."""
    value = loss(x, y)
    return value, *torch.autograd.grad(value, (x, y))


def compare_widths(rows: int, width: int, *, pairs: int) -> list[dict[str, object]]:
    """Return a row for each library: five widths against the full width alone; and one of the two libraries."""
    dims = tuple(width // 2**fold for fold in range(1, 5))
    x, y = make_inputs(rows, width)
    ours, theirs = build_ours(dims), build_theirs((width, *dims))
    for one, other in zip(run_step(ours, x, y), run_step(theirs, x, y), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)
    arms = {
        "ours, 5 widths / full width alone": (ours, build_ours(())),
        "sentence-transformers, 5 widths / full width alone": (theirs, build_theirs((width,))),
        "5 widths, ours / sentence-transformers": (ours, theirs),
    }
    found: list[dict[str, object]] = []
    for label, (first, second) in arms.items():
        timing = alternate(partial(run_step, first, x, y), partial(run_step, second, x, y), pairs=pairs)
        found.append(
            {
                "what": label,
                "B": rows,
                "D": width,
                "s": round(timing.ours_s, 3),
                "s of the other": round(timing.theirs_s, 3),
                "time ratio": round(timing.ratio, 2),
            }
        )
    return found


class CorpusStep:
    """One training step of a batch against a corpus that is projected anew."""

    def __init__(self, *, corpus: int, rows: int, width: int = 768, embed_dim: int = 512) -> None:
        torch.manual_seed(0)
        self.features = {name: torch.randn(corpus, width) for name in ("image", "text")}
        config = TextConfig(projector="mlp")
        self.heads = {
            name: ProjectionHead(width=width, embed_dim=embed_dim, config=config, pooling="own", perceiver=None)
            for name in self.features
        }
        self.loss = CorpusAlignmentLoss(dims=(256, 128, 64))
        self.rows, self.ids = torch.randperm(corpus)[:rows], torch.arange(corpus)
        self.parameters = [p for module in (*self.heads.values(), self.loss) for p in module.parameters()]

    def project(self, name: str) -> Tensor:
        """Return the embeddings (C, D) of all features of a modality, in parts."""
        head = self.heads[name]
        one_token = self.features[name][:, None]

        def pool(part: Tensor) -> Tensor:
            pooled: Tensor = head(part, torch.ones(part.shape[:2], dtype=torch.bool))[0]
            return pooled

        return torch.cat([checkpoint(pool, part, use_reentrant=False) for part in one_token.split(PART)])

    def __call__(self) -> float:
        every = {name: self.project(name) for name in self.features}
        output = self.loss.against(
            {name: rows[self.rows] for name, rows in every.items()},
            {name: Columns(rows, self.ids, self.ids, self.ids) for name, rows in every.items()},
            present={},
            captions=self.rows,
            groups=self.rows,
            samples=self.rows,
        )
        for parameter in self.parameters:
            parameter.grad = None
        output.loss.backward()
        return output.loss.item()


def print_peak(corpus: int, rows: int) -> None:
    """Print the peak memory of a step as JSON, after a warm-up on a small corpus; it includes the gradients."""
    CorpusStep(corpus=256, rows=32)()
    step = CorpusStep(corpus=corpus, rows=rows)
    with PeakMemory() as peak:
        step()
    print(json.dumps({"mib": peak.mib}))


def measure_corpus(corpus: int, rows: int) -> dict[str, object]:
    """Return a row: time and memory of a step against the corpus, beside those of a step against the batch alone."""
    whole, batch = CorpusStep(corpus=corpus, rows=rows), CorpusStep(corpus=rows, rows=rows)
    timing = alternate(whole, batch, pairs=5)
    peak = arm_in_own_process(__file__, "corpus", "--corpus", str(corpus), "--rows", str(rows))
    return {
        "what": f"a step against {corpus:,} captions and images / against the batch",
        "B": rows,
        "D": 512,
        "s": round(timing.ours_s, 3),
        "s of the other": round(timing.theirs_s, 3),
        "time ratio": round(timing.ratio, 2),
        "MiB": round(peak["mib"]),
    }


def main(quick: bool) -> None:
    """Measure both, and write results/benchmarks/edgeglass_losses.json."""
    rows = compare_widths(128 if quick else 1024, 512 if quick else 2048, pairs=3 if quick else 11)
    rows.append(measure_corpus(600 if quick else 3000, 32 if quick else 128))
    report("edgeglass_losses", rows, note="forward and backward in float32; MiB above features and weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", choices=["corpus"])
    parser.add_argument("--corpus", type=int)
    parser.add_argument("--rows", type=int)
    arguments = parser.parse_args()
    if arguments.arm:
        print_peak(arguments.corpus, arguments.rows)
    else:
        main(arguments.quick)
