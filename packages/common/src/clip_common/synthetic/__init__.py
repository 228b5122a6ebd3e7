"""The procedural world: pictures, sounds, walks and words made from a seed, for tests, demos and the tiny CLIP.

    scenes      one to four things on a ground, and captions of them       sample_scene, render, captions
    parts       one thing in close-up, flawless or damaged, and a mask     sample_part, render_part, part_captions
    sounds      a scene as tones                                           render_sound
    questions   about scenes, balanced so that words alone say nothing     questions, balanced_questions
    figures     people who walk, and where a doctor looks                  sample_subject, sample_clip, render_walk

Each is a function of (version, seed, index), in whatever order. Writers put sets on disk in the formats of real data;
oracles and guards say how well the best and the crudest reader do on them.

    from clip_common.synthetic import captions, render, sample_scene, write_flickr8k

    scene = sample_scene(0, 17)
    render(scene, size=112).save("scene.png")
    captions(scene)                        # five different ones
"""

from clip_common.regions import attention_maps
from clip_common.synthetic.balance import balanced_questions, majority_answer_accuracy
from clip_common.synthetic.captions import Claims, captions, read_caption
from clip_common.synthetic.draw import render
from clip_common.synthetic.figure_draw import keypoints, render_walk
from clip_common.synthetic.figure_oracle import walking_ceilings
from clip_common.synthetic.figure_regions import watched_regions
from clip_common.synthetic.figures import sample_clip, sample_subject
from clip_common.synthetic.flickr8k import oracle_of_folder, write_flickr8k, write_parts, write_pretraining
from clip_common.synthetic.guards import thumbnail_auroc
from clip_common.synthetic.jsonl import read_questions, read_scenes, write_questions, write_sounds
from clip_common.synthetic.mvtec import read_parts, write_mvtec
from clip_common.synthetic.oracle import attribute_oracle, oracle_scores, part_scores
from clip_common.synthetic.part_captions import part_captions
from clip_common.synthetic.part_draw import render_part
from clip_common.synthetic.parts import Part, novelty, sample_part
from clip_common.synthetic.questions import Question, answer, questions
from clip_common.synthetic.scenes import VERSION, Scene, Thing, sample_scene
from clip_common.synthetic.sounds import render_sound, sound_caption_oracle, sound_oracle
from clip_common.synthetic.walking import write_walking

__all__ = [
    "VERSION",
    "Claims",
    "Part",
    "Question",
    "Scene",
    "Thing",
    "answer",
    "attention_maps",
    "attribute_oracle",
    "balanced_questions",
    "captions",
    "keypoints",
    "majority_answer_accuracy",
    "novelty",
    "oracle_of_folder",
    "oracle_scores",
    "part_captions",
    "part_scores",
    "questions",
    "read_caption",
    "read_parts",
    "read_questions",
    "read_scenes",
    "render",
    "render_part",
    "render_sound",
    "render_walk",
    "sample_clip",
    "sample_part",
    "sample_scene",
    "sample_subject",
    "sound_caption_oracle",
    "sound_oracle",
    "thumbnail_auroc",
    "walking_ceilings",
    "watched_regions",
    "write_flickr8k",
    "write_mvtec",
    "write_parts",
    "write_pretraining",
    "write_questions",
    "write_sounds",
    "write_walking",
]
