"""`videoclip data render-maps`: draw attention maps from keypoints and attended regions into files."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from clip_common.errors import DataError
from clip_common.reporting import Progress
from clip_common.runs.files import write_new_folder
from videoclip.config import DataConfig
from videoclip.data.decoding import probe
from videoclip.data.formats import read_clips
from videoclip.data.manifest import write_manifest
from videoclip.data.maps import find_map_source, read_map

DOCTORS = ("doctor1", "doctor2", "both")


def render(
    root: Path, out: Path, *, maps: str = "both", size: int = 112, progress: Progress | None = None
) -> tuple[Path, int, list[str]]:
    """Write OUT/maps/NUMBER.npy, (T, S, S) float16 from 0 to 1, and OUT/manifest.csv, the same clips with these maps.

    T is the number of the video's frames within the clip. The folder is written whole or not at all.

    Args:
        root: A set with keypoints and regions.
        out: A folder that does not exist yet.
        maps: Whose regions to draw.
        size: S.
        progress: Called as `progress(done, total)`, in clips.

    Returns:
        The manifest, the number of maps drawn, and the clips without keypoints or regions.

    Raises:
        ValueError: A set that cannot be used, an unknown doctor, or no clip with keypoints and regions.
    """
    if maps not in DOCTORS:
        raise ValueError(f"--maps {maps}: expected one of {', '.join(DOCTORS)}")
    config = DataConfig(root=str(root), maps=maps)  # type: ignore[arg-type]
    records, drawn, without = read_clips(config), [], []
    with write_new_folder(out) as draft:
        (draft / "maps").mkdir()
        for done, record in enumerate(records, start=1):
            if find_map_source(record, config, channels=1) is None:
                without.append(record.clip_id)
                drawn.append(replace(record, map=None))
            else:
                info = probe(record.video)
                seconds = (info.seconds if record.end_s is None else record.end_s) - record.start_s
                frames = max(2, round(seconds * info.fps))
                map_TSS = read_map(record, replace(config, frames=frames), channels=1, side=size)[0].numpy() / 255
                file = Path("maps") / f"{done:05d}.npy"
                np.save(draft / file, map_TSS.astype(np.float16))
                # joints of the whole video would not fit a row whose files span the clip
                joints = record.keypoints if record.spans == "clip" else None
                drawn.append(replace(record, map=draft / file, keypoints=joints, spans="clip"))
            if progress is not None:
                progress(done, len(records))
        if len(without) == len(records):
            raise DataError(f"{root}: no clip has keypoints and regions of {maps}: nothing to draw")
        write_manifest(drawn, draft / "manifest.csv")
    return out / "manifest.csv", len(records) - len(without), without
