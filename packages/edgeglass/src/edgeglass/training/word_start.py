"""A projector that starts near the words: ridge regression from image tokens to the words of the answers about them.

A projector from random numbers needs hundreds of thousands of images before a decoder can read its tokens. A linear map
to the decoder's own word embeddings has a closed form, and a few hundred images give one whose tokens mean something.

Shapes: G images, N prefix tokens of all of them, C their width, E width of the decoder, U different ids.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.scoring.features import move_inputs
from edgeglass.training.vlm_batches import VlmSplit

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Penalties that are tried, as multiples of the tokens' mean variance."""
FOLD = 5
"""Every fifth image chooses among them."""
CHUNK = 64
"""Images whose tokens are in memory together."""


@torch.no_grad()
def start_from_words(model: QwenVLM, split: VlmSplit) -> None:
    """Set a linear projector so that the tokens of an image lie near the words of the answers about it.

    Every token of an image is regressed on one target, the mean embedding of its answers' words (`average_words`). The
    result is centred on the mean target and scaled to the spread of the words, so that tokens have the size of words.

    Args:
        model: Its `vision_proj` is changed in place.
        split: Training conversations; those without an image are not used.

    Raises:
        ValueError: Fewer than ten images with answers that tell them apart.
    """
    proj = model.vision_proj
    linear = proj.last
    target_GE, known_G, spread = average_words(model, split)
    if int(known_G.sum()) < 2 * FOLD:
        raise ValueError(
            f"prefix.start=words: {int(known_G.sum())} training images have answers that tell them apart, and it needs "
            f"{2 * FOLD}: set prefix.start=random"
        )
    images = known_G.nonzero()[:, 0]
    chosen, held = (Moments.empty(linear.in_features, linear.out_features) for _ in range(2))
    held_means, held_targets = [], []
    for start in range(0, len(images), CHUNK):
        rows = images[start : start + CHUNK]
        tokens_GPC, mask_GP = model.prefix(move_inputs(split.images.features.batch(rows.tolist()), model.device))
        tokens_GPC = proj.norm(tokens_GPC.float()).cpu()
        for place, row in enumerate(rows.tolist()):
            own_PC = tokens_GPC[place][mask_GP[place].cpu()]
            is_held = (start + place) % FOLD == 0
            (held if is_held else chosen).add(own_PC, target_GE[row])
            if is_held:
                held_means.append(own_PC.mean(dim=0))
                held_targets.append(target_GE[row])
    means_HC, targets_HE = torch.stack(held_means), torch.stack(held_targets)

    def agreement(penalty: float) -> float:
        weight_CE, bias_E = chosen.solve(penalty)
        centre_E = chosen.centre[1].float()
        return float(cosine_similarity(means_HC @ weight_CE + bias_E - centre_E, targets_HE - centre_E).mean())

    every = chosen.join(held)
    weight_CE, bias_E = every.solve(max(PENALTIES, key=agreement))
    # tokens are worth reading if they are as far from their centre as words are from theirs
    scale = spread / every.spread(weight_CE)
    centre_E = every.centre[1].float()
    linear.weight.copy_(scale * weight_CE.T)
    linear.bias.copy_(centre_E + scale * (bias_E - centre_E))
    for parameter in (linear.weight, linear.bias):
        parameter.div_(proj.factor)


def average_words(model: QwenVLM, split: VlmSplit) -> tuple[Tensor, Tensor, float]:
    """Return what the answers about each image say, as a mean of word embeddings.

    A word counts as often as it occurs, times log(G / number of images with it): what is said of every image tells
    nothing.

    Returns:
        The mean (G, E), float32 on the CPU; whether an image has words that are not said of every image (G,); the root
        mean square of the distance, number by number, of the words from their mean.
    """
    images = len(split.images.prefixes)
    said: list[list[int]] = [[] for _ in range(images)]
    for row, encoded in zip(split.images.rows, split.encoded, strict=True):
        if row is not None:
            said[row] += [id for id, learned in zip(encoded.ids, encoded.supervised, strict=True) if learned]
    ids_U = torch.tensor(sorted({id for ids in said for id in ids}))
    place = {id: number for number, id in enumerate(ids_U.tolist())}
    counts_GU = torch.zeros(images, len(ids_U))
    for row, ids in enumerate(said):
        counts_GU[row] = torch.bincount(torch.tensor([place[id] for id in ids], dtype=torch.long), minlength=len(ids_U))
    weights_GU = counts_GU * (images / (counts_GU > 0).sum(dim=0)).log()
    known_G = weights_GU.sum(dim=1) > 0
    words_UE = model.decoder.embed(ids_U[None].to(model.device))[0].float().cpu()
    mean_GE = weights_GU @ words_UE / weights_GU.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    spread = (words_UE - words_UE.mean(dim=0)).square().mean().sqrt()
    return mean_GE, known_G, float(spread)


@dataclass
class Moments:
    """Sums over N tokens with which a ridge regression is solved, float64.

    Attributes:
        count: N.
        x_C, y_E: Sums of tokens and of targets.
        xx_CC, xy_CE: Sums of their products.
    """

    count: int
    x_C: Tensor
    y_E: Tensor
    xx_CC: Tensor
    xy_CE: Tensor

    @classmethod
    def empty(cls, width: int, out: int) -> "Moments":
        """Return the sums of no tokens."""
        shapes = ((width,), (out,), (width, width), (width, out))
        return cls(0, *(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, tokens_NC: Tensor, target_E: Tensor) -> None:
        """Add tokens of one image, which have one target."""
        tokens_NC, target_E = tokens_NC.double(), target_E.double()
        total_C = tokens_NC.sum(dim=0)
        self.count += len(tokens_NC)
        self.x_C += total_C
        self.y_E += len(tokens_NC) * target_E
        self.xx_CC.addmm_(tokens_NC.T, tokens_NC)
        self.xy_CE.addr_(total_C, target_E)

    def join(self, other: "Moments") -> "Moments":
        """Return the sums over the tokens of both."""
        return Moments(
            self.count + other.count,
            self.x_C + other.x_C,
            self.y_E + other.y_E,
            self.xx_CC + other.xx_CC,
            self.xy_CE + other.xy_CE,
        )

    @property
    def centre(self) -> tuple[Tensor, Tensor]:
        """Mean token (C,) and mean target (E,)."""
        return self.x_C / self.count, self.y_E / self.count

    @property
    def covariance_CC(self) -> Tensor:
        """Covariance of the tokens."""
        return self.xx_CC / self.count - torch.outer(self.centre[0], self.centre[0])

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Return weight (C, E) and bias (E,), float32: y = x·weight + bias, by ridge regression.

        Args:
            penalty: Of the squared weights, as a multiple of the tokens' mean variance.
        """
        x_C, y_E = self.centre
        covariance_CC = self.covariance_CC
        covariance_CC.diagonal().add_(penalty * covariance_CC.diagonal().mean())
        crossed_CE = self.xy_CE / self.count - torch.outer(x_C, y_E)
        weight_CE = torch.cholesky_solve(crossed_CE, torch.linalg.cholesky(covariance_CC))
        return weight_CE.float(), (y_E - x_C @ weight_CE).float()

    def spread(self, weight_CE: Tensor) -> float:
        """Return the root mean square, number by number, of x·weight around its mean."""
        weight_CE = weight_CE.double()
        return float((weight_CE * (self.covariance_CC @ weight_CE)).sum(dim=0).mean().sqrt())
