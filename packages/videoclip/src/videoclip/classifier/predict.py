"""Predict videos and draw where the model, or a clinician, looked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_common.config import load_config
from clip_common.errors import DataError
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.files import write_text
from clip_common.runs.folder import is_run
from clip_common.tables import json_lines_text
from videoclip.classifier.classifier import Classifier, ClipPrediction, VideoPrediction
from videoclip.classifier.run_config import check_same_split_fields, is_training_set, load_run_config
from videoclip.config import Config
from videoclip.data import ClipRecord, Sample, VideoMapDataset, make_split, read_clips, resolve_span
from videoclip.data.clip_set import find_fingerprints
from videoclip.report.overlay import write_overlay, write_sheet


@dataclass(frozen=True)
class Answer:
    """Prediction of one video and its pictures.

    Attributes:
        video: The video file.
        prediction: Its prediction.
        files: The pictures drawn.
    """

    video: Path
    prediction: VideoPrediction
    files: list[Path]


def predict_videos(
    source: str | Path,
    videos: Sequence[Path],
    *,
    out: Path,
    start_s: float = 0.0,
    end_s: float | None = None,
    map: Path | None = None,
    keypoints: Path | None = None,
    regions: Sequence[str] = (),
    strict: bool = False,
    reporter: Reporter = silent,
) -> tuple[list[Answer], dict[Path, str]]:
    """Classify videos and draw where the model looked; skip and report videos that cannot be read.

    Writes OUT/predictions.jsonl, one line per video, and for each video a sheet (PNG) and a clip (MP4) of overlays.

    Args:
        source: A run folder or a saved model.
        videos: The videos to classify.
        out: Folder of the results; made if missing.
        start_s, end_s: Part of each video to classify, in seconds.
        map, keypoints, regions, strict: See `Classifier.predict`; a map is for a single video.
        reporter: Shows progress.

    Returns:
        The answers, and video → problem for those that could not be read.

    Raises:
        ValueError: No model at `source`, or one map for several videos.
    """
    if len(videos) > 1 and (map or keypoints or regions):
        raise ValueError(f"a map, keypoints and regions belong to one video; got {len(videos)} videos")
    names = name_outputs(videos)
    classifier = Classifier.from_pretrained(source)
    answers, problems = [], {}
    with reporter("classifying videos") as progress:
        for done, video in enumerate(videos, start=1):
            try:
                prediction = classifier.predict(
                    video,
                    start_s=start_s,
                    end_s=end_s,
                    map=map,
                    keypoints=keypoints,
                    regions=regions,
                    strict=strict,
                )
            except DataError as error:
                problems[video] = str(error)
            else:
                answers.append(Answer(video, prediction, draw(prediction, out / names[video])))
            if progress is not None:
                progress(done, len(videos))
    if answers:
        write_text(out / "predictions.jsonl", json_lines_text(as_dict(answer) for answer in answers))
    return answers, problems


def draw(prediction: VideoPrediction, place: Path) -> list[Path]:
    """Draw PLACE.png and PLACE.mp4 of a video's first clip; the title of the PNG tells the prediction."""
    clip = prediction.clips[0]
    place.parent.mkdir(parents=True, exist_ok=True)
    shares = ", ".join(
        f"{name}: {100 * value:.0f} %" for name, value in zip(prediction.classes, prediction.probabilities, strict=True)
    )
    title = f"class {prediction.name} ({shares})" + (", guided by the map" if clip.guided else "")
    if len(prediction.clips) > 1:
        title += f"; the first of {len(prediction.clips)} clips"
    picture, film = (place.with_name(f"{place.name}.{kind}") for kind in ("png", "mp4"))  # names may hold dots
    fps = playback_fps(clip.frames_THW3, start_s=clip.start_s, end_s=clip.end_s)
    return [
        write_sheet(clip.frames_THW3, _name_maps(clip), picture, title=title),
        write_overlay(clip.frames_THW3, clip.looked_THW, film, fps=fps),
    ]


def _name_maps(clip: ClipPrediction) -> dict[str, NDArray[np.float32]]:
    predicted = {} if clip.predicted_THW is None else {"predicted map": clip.predicted_THW}
    return predicted | {"model": clip.looked_THW}


def playback_fps(frames_THW3: NDArray[np.uint8], *, start_s: float, end_s: float) -> int:
    """Return the frames per second at which a clip plays in real time."""
    return max(1, round(len(frames_THW3) / (end_s - start_s)))


def as_dict(answer: Answer) -> dict[str, object]:
    """Return one line of predictions.jsonl."""
    prediction = answer.prediction
    return {
        "video": str(answer.video),
        "label": prediction.label,
        "class": prediction.name,
        "probabilities": [round(value, 6) for value in prediction.probabilities],
        "clips": [
            {
                "start_s": round(clip.start_s, 3),
                "end_s": round(clip.end_s, 3),
                "guided": clip.guided,
                "probabilities": [round(float(value), 6) for value in clip.probability_K],
            }
            for clip in prediction.clips
        ],
    }


def name_outputs(videos: Sequence[Path]) -> dict[Path, str]:
    """Return video → name of its pictures: the video's own, numbered if several have the same."""
    names: dict[Path, str] = {}
    for video in videos:
        name, number = video.stem, 2
        while name in names.values():
            name, number = f"{video.stem}-{number}", number + 1
        names[video] = name
    return names


def overlay_clips(
    source: Path,
    *,
    clips: Sequence[str] = (),
    count: int = 4,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter = silent,
) -> list[Path]:
    """Draw the maps over clips; for a run, also where the model looked, on clips of its test split.

    The maps are those that the model sees: the clinicians', or the control that replaces them (`data.control`).

    Args:
        source: A run folder, or a data set as in `data.root`.
        clips: Names of clips; default: the first clips of `count` subjects.
        count: Number of clips if none is named.
        out: Folder of the pictures; default: `overlays` in the run's plots, or in the working folder.
        overrides: Overrides of the configuration, such as `data.maps=doctor2`.
        reporter: Shows progress.

    Raises:
        ValueError: An unknown clip, or a data set or run that cannot be used.
    """
    classifier = None
    if is_run(source):
        run = Run.open(source)
        classifier = Classifier.from_pretrained(source)
        trained, config = load_run_config(run, overrides)
        if is_training_set(trained, config):
            check_same_split_fields(run, trained, config)
        records: Sequence[ClipRecord] = read_clips(config.data)
        if not clips and config.split != "all":
            labelled = [record for record in records if record.label is not None]
            split = make_split(labelled, config.data, fingerprints=find_fingerprints(config))
            records = split.parts()[config.split]
        out = out or source / "plots" / "overlays"
    else:
        config = load_config(Config, overrides=[*overrides, f"data.root={json.dumps(str(source))}"])
        records = read_clips(config.data)
        out = out or Path("overlays")
    chosen = choose_clips(records, clips, count=count)
    channels, seed = config.model.attn_in_channels, config.trainer.seed
    dataset = VideoMapDataset(records, config.data, channels=channels, seed=seed, training=False)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    with reporter("drawing clips") as progress:
        for done, record in enumerate(chosen, start=1):
            files += overlay_clip(record, dataset[dataset.records.index(record)], config, classifier, out)
            if progress is not None:
                progress(done, len(chosen))
    return files


def overlay_clip(
    record: ClipRecord, sample: Sample, config: Config, classifier: Classifier | None, out: Path
) -> list[Path]:
    """Draw a sheet and a clip of one record: its map and, with a classifier, where the model looked."""
    frames_THW3 = sample.video_3THW.permute(1, 2, 3, 0).numpy()
    seen_THW = sample.map_CTHW.mean(dim=0).numpy()
    control = config.data.control
    title, maps = record.clip_id, {"clinician" if control == "none" else f"{control} map": seen_THW}
    if record.label is not None:
        title += f", class {config.model.classes[record.label]}"
    if classifier is not None:
        prediction = classifier.predict_shown(record, sample.video_3THW, sample.map_CTHW)
        likely = config.model.classes[int(prediction.probability_K.argmax())]
        title += f", predicted {likely} ({100 * prediction.probability_K.max():.0f} %)"
        maps |= _name_maps(prediction)
    name = record.clip_id.replace("/", "_")
    shown_THW = maps.get("model", seen_THW)
    start_s, end_s = resolve_span(record.video, start_s=record.start_s, end_s=record.end_s)
    return [
        write_sheet(frames_THW3, maps, out / f"{name}.png", title=title),
        write_overlay(
            frames_THW3, shown_THW, out / f"{name}.mp4", fps=playback_fps(frames_THW3, start_s=start_s, end_s=end_s)
        ),
    ]


def choose_clips(records: Sequence[ClipRecord], names: Sequence[str], *, count: int) -> list[ClipRecord]:
    """Return the named clips, or the first clips of `count` subjects.

    Raises:
        ValueError: An unknown clip.
    """
    by_name = {record.clip_id: record for record in records}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"no clip is called {missing[0]}; there are {', '.join(list(by_name)[:3])}, …")
    if names:
        return [by_name[name] for name in names]
    firsts: dict[str, ClipRecord] = {}
    for record in records:
        firsts.setdefault(record.subject_id, record)
    return list(firsts.values())[:count]
