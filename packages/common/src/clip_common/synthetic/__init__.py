"""The procedural world: pictures and captions made from a seed, for tests, demos and the tiny CLIP.

from clip_common.synthetic import sample_scene, render, captions, write_flickr8k

scene = sample_scene(0, 17)            # by (version, seed, index), in whatever order
render(scene, size=112).save("scene.png")
captions(scene)                        # five different ones
"""

from clip_common.synthetic.captions import Claims, captions, read_caption
from clip_common.synthetic.draw import render
from clip_common.synthetic.flickr8k import oracle_of_folder, write_flickr8k
from clip_common.synthetic.oracle import attribute_oracle, oracle_scores
from clip_common.synthetic.scenes import VERSION, Scene, Thing, sample_scene

__all__ = [
    "VERSION",
    "Claims",
    "Scene",
    "Thing",
    "attribute_oracle",
    "captions",
    "oracle_of_folder",
    "oracle_scores",
    "read_caption",
    "render",
    "sample_scene",
    "write_flickr8k",
]
