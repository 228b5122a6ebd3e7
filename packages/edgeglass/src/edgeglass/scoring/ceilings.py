"""R@1 of the best possible reader on samples of the procedural world, which knows the content of every sample."""

from collections.abc import Sequence
from pathlib import Path

from clip_common.synthetic import attribute_oracle, read_scenes, sound_caption_oracle, sound_oracle
from edgeglass.data.records import Sample

SCENES = "scenes.jsonl"
"""File that describes the content of each picture of a set of the world."""


def read_ceilings(samples: Sequence[Sample]) -> dict[str, float]:
    """Return R@1 by direction (`i2t`, `t2i`, `a2t`, `t2a`, `i2a`, `a2i`, `ia2t`); empty for samples of another source.

    A sound does not tell texture and background, and of places only their order, so the ceilings of sounds are lower.
    Readers guess among items that fit a query equally; a model that learned how captions are made can exceed them.
    """
    paths = [sample.image for sample in samples if isinstance(sample.image, Path)]
    root = paths[0].parent.parent if paths else Path()
    if len(paths) < len(samples) or not (root / SCENES).is_file():
        return {}
    scenes_of = read_scenes(root)
    names = [path.relative_to(root).as_posix() for path in paths]
    if not all(name in scenes_of for name in names) or not all(sample.captions for sample in samples):
        return {}
    scenes, captions = [scenes_of[name] for name in names], [sample.captions for sample in samples]
    found = attribute_oracle(scenes, captions) | sound_caption_oracle(scenes, captions) | sound_oracle(scenes)
    names_of = {"i2t": "i2t", "t2i": "t2i", "s2t": "a2t", "t2s": "t2a", "i2s": "i2a", "s2i": "a2i"}
    ceilings = {ours: found[f"{theirs}/R@1"] for theirs, ours in names_of.items()}
    return ceilings | {"ia2t": ceilings["i2t"], "ia(sum)2t": ceilings["i2t"]}
