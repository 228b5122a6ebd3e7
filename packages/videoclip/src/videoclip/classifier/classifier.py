"""The trained classifier: load it, predict videos, save it."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip_common.devices import pick_device
from clip_common.errors import check_list
from clip_common.runs.opening import MARKER, find_model, read_marker, write_marker
from clip_common.tensors import load_state, read_tensors, write_tensors
from videoclip.classifier.focus import locate_focus, predicted_map
from videoclip.config import DataConfig, ModelConfig
from videoclip.data import ClipRecord, read_pair
from videoclip.data.decoding import resolve_span
from videoclip.models import VideoAttentionCLIP, normalise

WEIGHTS = "model.safetensors"
FORMAT = 3
"""Version of the format that `save_pretrained` writes."""


@dataclass(frozen=True)
class Sampling:
    """How clips are sampled for a model.

    Attributes:
        frames: Frames per clip.
        size: Height and width in pixels.
        clip_seconds: Length of a clip in seconds; a longer video is cut into several.
    """

    frames: int
    size: int
    clip_seconds: float

    @classmethod
    def from_clips(cls, records: Sequence[ClipRecord], config: DataConfig) -> Self:
        """Return the sampling of a training set: its frames, its size, and the median length of its clips."""
        spans = [resolve_span(record.video, start_s=record.start_s, end_s=record.end_s) for record in records]
        seconds = median(end_s - start_s for start_s, end_s in spans)
        return cls(frames=config.frames, size=config.size, clip_seconds=round(seconds, 3))


@dataclass(frozen=True, eq=False)
class ClipPrediction:
    """Prediction of one clip of a video, and where the model looked.

    Attributes:
        start_s, end_s: Start and end of the clip in the video, in seconds.
        probability_K: Probability of each class.
        frames_THW3: The frames that the model saw, uint8 RGB.
        looked_THW: Where the model looked, 0 to 1, on the grid of its tokens (`videoclip.classifier.focus`).
        predicted_THW: The map that the model predicted, 0 to 1, on the same grid; None if it predicts none.
        guided: Whether a given map guided the pooling.
    """

    start_s: float
    end_s: float
    probability_K: NDArray[np.float64]
    frames_THW3: NDArray[np.uint8]
    looked_THW: NDArray[np.float32]
    predicted_THW: NDArray[np.float32] | None
    guided: bool


@dataclass(frozen=True, eq=False)
class VideoPrediction:
    """Prediction of a video: the mean over its clips.

    Attributes:
        clips: The predictions of its clips.
        classes: How each class is called.
    """

    clips: tuple[ClipPrediction, ...]
    classes: tuple[str, ...]

    @property
    def probability_K(self) -> NDArray[np.float64]:
        """Probability of each class."""
        return np.mean([clip.probability_K for clip in self.clips], axis=0)

    @property
    def probabilities(self) -> list[float]:
        """The probabilities as plain numbers."""
        return [float(value) for value in self.probability_K]

    @property
    def label(self) -> int:
        """The most likely class."""
        return int(self.probability_K.argmax())

    @property
    def name(self) -> str:
        """Name of the most likely class."""
        return self.classes[self.label]


class Classifier:
    """A trained model that classifies videos, with or without a clinician's map.

        Classifier.from_pretrained("runs/videoclip/first").predict("clip.mp4").probabilities

    Args:
        model: A trained model.
        sampling: How clips are sampled for it.
        device: Device to run on; default: a GPU if available.
    """

    def __init__(
        self, model: VideoAttentionCLIP, sampling: Sampling, *, device: str | torch.device | None = None
    ) -> None:
        self.device = pick_device() if device is None else torch.device(device)
        self.model = model.eval()
        self.sampling = sampling

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> Self:
        """Load the best weights of a run folder, or a folder that `save_pretrained` wrote.

        Raises:
            ValueError: One line: no model there, one of another version of the package, or a damaged one.
        """
        folder = find_model(source, package="videoclip", format=FORMAT)
        content = read_marker(folder, package="videoclip", format=FORMAT)
        try:
            config, sampling = ModelConfig(**content["model"]), Sampling(**content["sampling"])
            model = VideoAttentionCLIP(config, temperature=content["temperature"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder / MARKER} is damaged: {error!r}: copy the folder again") from error
        load_state(model, read_tensors(folder / WEIGHTS), source=folder / WEIGHTS, called=f"the {MARKER} beside it")
        return cls(model, sampling, device=device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model.safetensors, and a config.json with the model's configuration and its sampling."""
        folder, model = Path(folder), self.model
        write_tensors(folder / WEIGHTS, model.state_dict())
        content = {
            "model": asdict(replace(model.config, weights=None)),  # the weights that it started from are within
            "temperature": model.temperature,
            "sampling": asdict(self.sampling),
        }
        write_marker(folder, content, package="videoclip", format=FORMAT)
        return folder

    def predict(
        self,
        video: str | Path,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        map: str | Path | None = None,
        keypoints: str | Path | None = None,
        regions: Sequence[str] = (),
        strict: bool = False,
    ) -> VideoPrediction:
        """Predict the class probabilities of a video: those of each of its clips, and their mean.

        Args:
            video: A video file, an .npz of frames, or a folder of frames.
            start_s, end_s: Part of the video to classify, in seconds; default: all of it.
            map: Attention map of the whole video.
            keypoints: COCO joints of the whole video, from which the map of `regions` is drawn.
            regions: Names of attended regions (`clip_common.regions.REGIONS`).
            strict: Raise, instead of warning, if the model needs a map and gets none: it pools evenly then, which it
                has not learned (`needs_map`).

        Raises:
            DataError: One line: a file that cannot be read.
            ValueError: A map for a model that uses none, no map for a model that classifies maps, or keypoints without
                regions; with `strict`, no map for a model that needs one.
        """
        check_list(regions, "regions")
        self._check_map(map=map, keypoints=keypoints, regions=regions, strict=strict)
        whole = ClipRecord(
            clip_id=Path(video).name,
            subject_id="",
            video=Path(video),
            start_s=start_s,
            end_s=end_s,
            map=None if map is None else Path(map),
            keypoints=None if keypoints is None else Path(keypoints),
            regions_doctor1=tuple(regions),
            spans="video",
        )
        start_s, end_s = resolve_span(whole.video, start_s=start_s, end_s=end_s)
        count = max(1, round((end_s - start_s) / self.sampling.clip_seconds))
        edges = np.linspace(start_s, end_s, count + 1).tolist()
        clips = [replace(whole, start_s=a, end_s=b) for a, b in pairwise(edges)]
        config = DataConfig(frames=self.sampling.frames, size=self.sampling.size)
        classes = tuple(self.model.config.classes)
        return VideoPrediction(tuple(self.predict_record(clip, config) for clip in clips), classes)

    @property
    def needs_map(self) -> bool:
        """Whether the model was trained with a map for every clip, and so has not learned to work without one."""
        config = self.model.config
        return config.map_guided and config.guide == "map" and not config.map_dropout

    def _check_map(self, *, map: object, keypoints: object, regions: Sequence[str], strict: bool) -> None:
        if (keypoints is None) == bool(regions):
            raise ValueError("a map is drawn from keypoints and regions: give both, or neither")
        if map is not None and regions:
            raise ValueError("give a map, or keypoints and regions to draw one from, not both")
        given, model = map is not None or bool(regions), self.model.config
        if given and not model.map_guided and model.clip_classifier_source == "video":
            raise ValueError(
                "this model does not use maps (model.map_guided=false): leave the map out, "
                "or use a model trained with model.map_guided=true"
            )
        if not given and model.clip_classifier_source != "video":
            raise ValueError(
                f"this model classifies maps (model.clip_classifier_source={model.clip_classifier_source}): "
                "give a map, or keypoints and regions"
            )
        if not given and self.needs_map:
            without = (
                "no map is given, and this model has learned to classify with one alone: its answers are hardly better "
                "than chance: give a map, or keypoints and regions, or use a model trained with model.guide=predicted"
            )
            if strict:
                raise ValueError(without)
            warnings.warn(without, stacklevel=3)

    def predict_record(self, record: ClipRecord, config: DataConfig) -> ClipPrediction:
        """Predict one clip of a data set, with the map that `config.maps` selects."""
        channels = self.model.config.attn_in_channels
        pair = read_pair(record, config, channels=channels, side=self.sampling.size)
        return self.predict_shown(record, pair.frames_T3SS.transpose(0, 1), pair.map_CTSS.float() / 255)

    @torch.inference_mode()
    def predict_shown(self, record: ClipRecord, video_3THW: Tensor, map_CTHW: Tensor) -> ClipPrediction:
        """Predict one clip of a data set from these uint8 frames and this map."""
        self.model.to(self.device)
        shown = normalise(video_3THW[None].to(self.device)), map_CTHW[None].to(self.device)
        output = self.model(*shown, align=False)
        start_s, end_s = resolve_span(record.video, start_s=record.start_s, end_s=record.end_s)
        return ClipPrediction(
            start_s=start_s,
            end_s=end_s,
            probability_K=output.logits[0].double().softmax(dim=0).cpu().numpy(),
            frames_THW3=video_3THW.permute(1, 2, 3, 0).numpy(),
            looked_THW=locate_focus(self.model, output),
            predicted_THW=predicted_map(output),
            guided=output.video_gate is not None and bool(output.guided[0]),
        )
