"""A trained model for a person: an image and a noun in, a verdict, a score, a heatmap, a mask and boxes out.

    from aaclip import Detector

    detector = Detector.from_pretrained("runs/aaclip/first")
    found = detector.predict("part.jpg", name="metal nut")

Shapes: B images, D shared width, S pixels of the model's input, H and W of a picture.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.special import expit
from torch import Tensor

from aaclip.calibration import Logistic, Threshold, top_mean
from aaclip.config import BackboneConfig, Config, PreprocessConfig
from aaclip.data import as_rgb, read_image
from aaclip.data.augment import squash
from aaclip.maps import anomaly_map
from aaclip.models import AnomalyModel, PlainCLIP
from aaclip.prompts import PromptSet, class_embeddings, prompt_set
from aaclip.regions import Region, boxes
from clip_common.backbones import Bundle, load_clip
from clip_common.backbones.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from clip_common.config import load_config, to_yaml
from clip_common.runs import Run, write_atomically, write_json
from clip_common.runs.files import write_text

WEIGHTS, CONFIG, DETECTOR = "model.safetensors", "config.yaml", "detector.json"
DEFAULT_SCORE = Logistic(a=50.0, b=0.5, c=0.0)
"""Before any fit: half the image's own logit and half the map's hottest hundredth."""


@dataclass(frozen=True)
class Detection:
    """What is found in one picture.

    Attributes:
        score: Probability-like, 0 to 1; the same for the picture alone, in a batch or in another process.
        verdict: `anomalous` where the score reaches the threshold, else `normal`; None before a threshold is set.
        heatmap_HW: Float32 0 to 1, at the picture's size, on one scale for all pictures: above one half is in the mask.
        mask_HW: Bool, where the heatmap is above one half.
        boxes: The mask's connected regions, hottest first.
    """

    score: float
    verdict: Literal["normal", "anomalous"] | None
    heatmap_HW: NDArray[np.float32]
    mask_HW: NDArray[np.bool_]
    boxes: list[Region]


@dataclass(frozen=True)
class Scores:
    """What is known of a batch.

    Attributes:
        maps_BSS: Mean logit difference of the levels, blurred: 0 is the border between normal and abnormal.
        classification_B: Cosine to abnormal minus cosine to normal, of each image as a whole.
        top_B: Mean of the hottest hundredth of each map.
    """

    maps_BSS: Tensor
    classification_B: Tensor
    top_B: Tensor


class Detector:
    """A model, class embeddings, a fitted image score and a threshold.

    Args:
        model: In eval mode from here on.
        config: Of its training, or of plain CLIP.
        classes: Embeddings (D, 2) that are known already, by what the thing is called.
        score: From classification and map to one number; None: unfitted.
        threshold: Of the score; None: no verdicts.
        border: Logit difference of a map from which a pixel counts as part of a defect.
    """

    def __init__(
        self,
        model: AnomalyModel | PlainCLIP,
        config: Config,
        *,
        classes: Mapping[str, Tensor] | None = None,
        score: Logistic | None = None,
        threshold: Threshold | None = None,
        border: float = 0.0,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.classes = dict(classes or {})
        self.score = score or DEFAULT_SCORE
        self.threshold = threshold
        self.border = border

    @cached_property
    def prompts(self) -> PromptSet:
        """What is said about a class."""
        return prompt_set(self.config.prompts.set)

    @property
    def size(self) -> int:
        """S."""
        return self.model.bundle.spec.image_size

    @property
    def preprocess(self) -> Preprocess:
        """An RGB picture to the model's input: squashed to a square, normalised."""
        return preprocess_of(self.model.bundle, self.config.preprocess)

    @torch.inference_mode()
    def class_embedding(
        self, name: str, *, states: tuple[Sequence[str], Sequence[str]] | None = None, templates: Sequence[str] = ()
    ) -> Tensor:
        """(D, 2) normal and abnormal embedding of whatever is called `name`.

        Args:
            name: A noun, or a class of the training set.
            states: Normal and abnormal states in place of the prompt set's, `{}` for the name.
            templates: In place of the prompt set's, `{}` for a state.
        """
        own = states is not None or bool(templates)
        called = self.prompts.name_of(name)
        if not own and called in self.classes:
            return self.classes[called].to(self.model.device)
        prompts = self.prompts
        if states is not None:
            prompts = replace(prompts, normal=tuple(states[0]), abnormal=tuple(states[1]))
        if templates:
            prompts = replace(prompts, templates=tuple(templates))
        renormalise = self.config.prompts.renormalise
        embedding = class_embeddings(self.model.encode_text, [called], prompts, renormalise=renormalise)[0].float()
        if not own:
            self.classes[called] = embedding
        return embedding

    @torch.inference_mode()
    def scores(self, images_B3SS: Tensor, text_BD2: Tensor) -> Scores:
        """Maps and image evidence of preprocessed images, each against the embedding of its class."""
        evidence = self.model(images_B3SS.to(self.model.device), text_BD2.to(self.model.device))
        maps_BSS = anomaly_map(
            evidence.levels,
            size=self.size,
            domain=self.config.score.domain,
            weights_K=self.model.level_weights,
        )
        return Scores(maps_BSS, evidence.classification.float(), top_mean(maps_BSS))

    def image_logits(self, scores: Scores) -> NDArray[np.float64]:
        """(B,) one number an image, of which its score is the sigmoid."""
        return self.score.logits(scores.classification_B.cpu().numpy(), scores.top_B.cpu().numpy())

    def predict(
        self, images: "str | Path | Image.Image | Iterable[str | Path | Image.Image]", *, name: str, batch_size: int = 8
    ) -> "Detection | list[Detection]":
        """Look for defects.

        Args:
            images: A picture or a file, or several of them.
            name: What is in them: any noun.
            batch_size: Pictures at a time; changes nothing but the time.

        Returns:
            One Detection for one picture, a list for several.

        Raises:
            DataError: A file that is no picture.
        """
        if isinstance(images, (str, Path, Image.Image)):
            return next(self.predictions([images], name=name, batch_size=1))
        return list(self.predictions(images, name=name, batch_size=batch_size))

    def predictions(
        self, images: Iterable[str | Path | Image.Image], *, name: str, batch_size: int = 8
    ) -> Iterator[Detection]:
        """As `predict`, one after another, so that a large folder takes no more memory than a batch."""
        text_D2 = self.class_embedding(name)
        pending = iter(images)
        while chunk := list(islice(pending, batch_size)):
            pictures = [as_rgb(one) if isinstance(one, Image.Image) else read_image(Path(one)) for one in chunk]
            batch_B3SS = torch.stack([self.preprocess(squash(one, None, side=self.size)[0]) for one in pictures])
            scores = self.scores(batch_B3SS, text_D2.expand(len(pictures), -1, -1))
            score_B = expit(self.image_logits(scores))
            for picture, map_SS, score in zip(pictures, scores.maps_BSS, score_B, strict=True):
                yield self._detection(picture, map_SS, float(score))

    def _detection(self, picture: Image.Image, map_SS: Tensor, score: float) -> Detection:
        heat = Image.fromarray((map_SS - self.border).sigmoid().cpu().numpy()).resize(
            picture.size, Image.Resampling.BILINEAR
        )
        heatmap_HW = np.asarray(heat, dtype=np.float32)
        mask_HW = heatmap_HW > 0.5
        verdict: Literal["normal", "anomalous"] | None = None
        if self.threshold is not None:
            verdict = "anomalous" if score >= self.threshold.value else "normal"
        return Detection(score, verdict, heatmap_HW, mask_HW, boxes(mask_HW, heatmap_HW, least=4))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write what was trained, the class embeddings, the score and the threshold; the CLIP stays where it is."""
        assert isinstance(self.model, AnomalyModel)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(self.classes)
        state = {name: tensor.contiguous().cpu() for name, tensor in trained_state(self.model).items()}
        state |= {f"classes.{row}": self.classes[name].contiguous().cpu() for row, name in enumerate(names)}
        with write_atomically(folder / WEIGHTS) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        write_text(folder / CONFIG, to_yaml(self.config))
        told: dict[str, Any] = {
            "format": 1,
            "fingerprint": self.model.bundle.spec.fingerprint,
            "classes": names,
            "score": self.score.to_dict(),
            "border": self.border,
            "threshold": None if self.threshold is None else self.threshold.to_dict(),
        }
        write_json(folder / DETECTOR, told)
        return folder

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Detector":
        """A run folder or a folder that `save_pretrained` wrote.

        Raises:
            ValueError: One line: no such folder, a run without a model yet, damaged files, or another backbone.
        """
        folder = model_folder(Path(source))
        config = load_config(Config, config=folder / CONFIG)
        told = described(folder)
        bundle = load_backbone(config.backbone)
        if bundle.spec.fingerprint != told["fingerprint"]:
            raise ValueError(
                f"{folder} was trained on other weights than those of {config.backbone.name} here (fingerprint "
                f"{told['fingerprint'][:12]}…, found {bundle.spec.fingerprint[:12]}…): load the backbone that it names"
            )
        model = AnomalyModel(bundle, config)
        try:
            state = load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS} is damaged: {error}") from error
        rows = {name: f"classes.{row}" for row, name in enumerate(told["classes"])}
        if not state.keys() >= set(rows.values()):
            raise ValueError(f"{folder / WEIGHTS} is not of the same detector as {DETECTOR} beside it: copy both again")
        classes = {name: state.pop(key) for name, key in rows.items()}
        load_trained(model, state, source=folder / WEIGHTS)
        threshold = None if told["threshold"] is None else Threshold.from_dict(told["threshold"])
        score, border = Logistic.from_dict(told["score"]), float(told["border"])
        return cls(model, config, classes=classes, score=score, threshold=threshold, border=border)

    @classmethod
    def plain(cls, backbone: BackboneConfig | str = "tiny", *, config: Config | None = None) -> "Detector":
        """CLIP as it is, with the same prompts and maps: what training must beat."""
        config = config or Config()
        if isinstance(backbone, str):
            backbone = BackboneConfig(name=backbone, pretrained=None, activation=None, image_size=None)
        config = replace(config, backbone=backbone)
        return cls(PlainCLIP(load_backbone(backbone), levels=config.levels), config)


def load_backbone(config: BackboneConfig) -> Bundle:
    """The frozen CLIP that a configuration names."""
    return load_clip(
        config.name, pretrained=config.pretrained, activation=config.activation, image_size=config.image_size
    )


def preprocess_of(bundle: Bundle, config: PreprocessConfig) -> Preprocess:
    """The backbone's statistics or ImageNet's, on a square that keeps no aspect."""
    own = bundle.preprocess
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if config.statistics == "imagenet" else (own.mean, own.std)
    return Preprocess(size=bundle.spec.image_size, mean=mean, std=std, interpolation="bicubic", resize_mode="squash")


def trained_state(model: AnomalyModel) -> dict[str, Tensor]:
    """The state of what the two stages train."""
    kept = ("text_adapter.", "image_adapter.", "log_temperature", "level_logits")
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name.startswith(kept)}


def load_trained(model: AnomalyModel, state: Mapping[str, Tensor], *, source: Path) -> None:
    """The inverse of `trained_state`.

    Raises:
        ValueError: Weights of other adapters.
    """
    own = trained_state(model)
    wrong = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        raise ValueError(f"{source}: {len(wrong)} weights are of other adapters than configured, such as {wrong[0]}")
    model.load_state_dict(dict(state), strict=False)


def model_folder(source: Path) -> Path:
    """The folder of a run's model, or the folder itself where it holds one."""
    if (source / DETECTOR).exists():
        return source
    if (source / "phases.json").exists():
        folder = Run.open(source).path / "model"
        if (folder / DETECTOR).exists():
            return folder
        raise ValueError(f"{source} is a run without a model yet: finish it with `aaclip train --resume {source}`")
    raise ValueError(f"{source}: neither a run folder of aaclip nor a folder with {DETECTOR} in it")


def described(folder: Path) -> dict[str, Any]:
    """What `save_pretrained` wrote beside the weights.

    Raises:
        ValueError: A damaged file.
    """
    try:
        told: dict[str, Any] = json.loads((folder / DETECTOR).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / DETECTOR} is damaged: {error}") from error
    return told


def save_threshold(source: Path, threshold: Threshold) -> None:
    """Write a saved detector's threshold; the weights stay as they are."""
    folder = model_folder(source)
    write_json(folder / DETECTOR, described(folder) | {"threshold": threshold.to_dict()})
