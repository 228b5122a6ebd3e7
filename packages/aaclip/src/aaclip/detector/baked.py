"""A detector for a few named things as one module without inputs but pixels: what `aaclip export` writes.

Shapes: B images, S pixels a side of the model's input, C names, D shared width, N remembered patches or tokens of a
class's prompts, F width of the text tower.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from aaclip.detector.calibration import Threshold
from aaclip.detector.detector import Detector
from aaclip.detector.memory import Level
from aaclip.detector.scorer import Scorer
from aaclip.models import AnomalyModel, PlainCLIP
from aaclip.models.contexts import TextContexts


class BakedDetector(nn.Module):
    """A detector's whole computation for some names, with everything they need as buffers; the text tower is left out.

    Args:
        detector: Its tensors are shared, not copied.
        names: C things that the images may show.
        threshold: Of the score; None: no verdicts.
    """

    text_CD2: Tensor
    scale_311: Tensor
    shift_311: Tensor
    tokens_CNF: Tensor
    mask_CN: Tensor

    def __init__(self, detector: Detector, names: Sequence[str], *, threshold: Threshold | None) -> None:
        super().__init__()
        self.scorer = Scorer(
            without_text(detector.model), logistic=detector.score, domain=detector.config.score.domain
        ).eval()
        self.border, self.threshold = detector.border, threshold
        preprocess = detector.preprocess
        mean_311, std_311 = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
        self.register_buffer("scale_311", 1 / (255 * std_311))
        self.register_buffer("shift_311", mean_311 / std_311)
        self.register_buffer("text_CD2", torch.stack([detector.class_embedding(name) for name in names]))
        self.levels = self._keep_memories(detector, names)
        self.attends = detector.contexts is not None
        if self.attends:
            parts = [detector.text_contexts([name]) for name in names]
            tokens = [part.tokens_GNF[0] for part in parts if part is not None]
            lengths_C = torch.tensor([len(tokens_NF) for tokens_NF in tokens])
            self.register_buffer("tokens_CNF", pad_sequence(tokens, batch_first=True))
            self.register_buffer("mask_CN", torch.arange(int(lengths_C.max())) < lengths_C[:, None])

    def forward(self, images_BSS3: Tensor, name: Tensor) -> tuple[Tensor, ...]:
        """Score pictures.

        Args:
            images_BSS3: Uint8 RGB, resized to S x S pixels.
            name: () int64, what all of them show: a row of `names`.

        Returns:
            Scores (B,) from 0 to 1, float32; maps (B, S, S) from 0 to 1, above one half where a defect is; and with a
            threshold verdicts (B,) bool, True for scores that reach it.
        """
        images_B3SS = images_BSS3.permute(0, 3, 1, 2).float() * self.scale_311 - self.shift_311
        row_1 = name.reshape(1)
        text_BD2 = self.text_CD2.index_select(0, row_1).expand(images_BSS3.shape[0], -1, -1)
        memory = [
            Level(self.get_buffer(f"patches_{level}_CND")[row_1][0], self.get_buffer(f"usual_{level}_C")[row_1][0])
            for level in range(self.levels)
        ]
        context = None
        if self.attends:
            context = TextContexts(self.tokens_CNF.index_select(0, row_1), self.mask_CN.index_select(0, row_1))
        scores = self.scorer(images_B3SS, text_BD2, memory, context)
        answers = (scores.scores_B.float(), (scores.maps_BSS - self.border).sigmoid())
        if self.threshold is None:
            return answers
        return (*answers, scores.scores_B >= self.threshold.value)

    def _keep_memories(self, detector: Detector, names: Sequence[str]) -> int:
        """Register the remembered patches of each name, and return the number of levels; 0 if nothing is remembered."""
        memories = [detector.memory_of(name) for name in names]
        known = [memory for memory in memories if memory is not None]
        if not known:
            return 0
        for number, example in enumerate(known[0].levels):
            levels = [None if memory is None else memory.levels[number] for memory in memories]
            most = max(len(level.patches_ND) for level in levels if level is not None)
            # a name without a memory: the distance to the patch 0 is always 1, and so is the usual one
            nothing = Level(torch.zeros_like(example.patches_ND[:1]), torch.ones_like(example.usual))
            filled = [nothing if level is None else level for level in levels]
            # a patch that is there twice changes no distance
            rows = [torch.arange(most) % len(level.patches_ND) for level in filled]
            patches = [level.patches_ND[rows_N] for level, rows_N in zip(filled, rows, strict=True)]
            self.register_buffer(f"patches_{number}_CND", torch.stack(patches))
            self.register_buffer(f"usual_{number}_C", torch.stack([level.usual for level in filled]))
        return len(known[0].levels)


def without_text(model: AnomalyModel | PlainCLIP) -> AnomalyModel | PlainCLIP:
    """Return a frozen view of the model that shares its memory and has no part that reads text."""
    frozen = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    kept = {id(part): part for part in (*model.buffers(), model.bundle)}
    view = deepcopy(model, frozen | kept)
    del view.text_tower
    if isinstance(view, AnomalyModel):
        del view.text_adapter
        view.text_cross_attn = None
    return view
