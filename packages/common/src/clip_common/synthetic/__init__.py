"""The procedural world: pictures, sounds, walks and texts made from a seed, for tests, demos and the tiny CLIP.

    scenes      one to four things on a background, with captions          sample_scene, render, captions
    parts       one thing in close-up, flawless or damaged, with a mask    sample_part, render_part, part_captions
    people      one person who walks, in words new to the tiny CLIP        sample_person, render_person, person_captions
    sounds      scenes as tones                                            render_sound
    questions   about scenes; the words alone do not tell the answer       questions, balanced_questions
    figures     people who walk, and the regions that doctors watch        sample_subject, sample_clip, render_walk

Every sample is a function of (version, seed, index), in any order of calls. Writers store sets on disk in the
formats of real data. Oracles compute how well the best reader does on them, guards how well the crudest one does.

    from clip_common.synthetic import captions, render, sample_scene, write_flickr8k

    scene = sample_scene(0, 17)
    render(scene, size=112).save("scene.png")
    captions(scene)                        # five different captions
"""

from clip_common.regions import attention_maps
from clip_common.synthetic.balance import balanced_questions, majority_answer_accuracy
from clip_common.synthetic.captions import Claims, captions, read_caption
from clip_common.synthetic.draw import render
from clip_common.synthetic.figure_draw import keypoints, render_walk
from clip_common.synthetic.figure_oracle import walking_ceilings
from clip_common.synthetic.figure_regions import watched_regions
from clip_common.synthetic.figures import sample_clip, sample_subject
from clip_common.synthetic.flickr8k import (
    oracle_of_folder,
    write_flickr8k,
    write_parts,
    write_people,
    write_pretraining,
)
from clip_common.synthetic.guards import thumbnail_auroc
from clip_common.synthetic.jsonl import read_questions, read_scenes, write_questions, write_sounds
from clip_common.synthetic.mvtec import read_parts, write_mvtec
from clip_common.synthetic.oracle import attribute_oracle, oracle_scores, part_scores, person_scores
from clip_common.synthetic.part_captions import part_captions
from clip_common.synthetic.part_draw import render_part
from clip_common.synthetic.parts import Part, novelty, sample_part
from clip_common.synthetic.people import Person, person_captions, render_person, sample_person
from clip_common.synthetic.question_forms import REASONING_TYPES, TYPES
from clip_common.synthetic.questions import Question, answer, draw_questions, questions
from clip_common.synthetic.scenes import VERSION, Scene, Thing, sample_scene
from clip_common.synthetic.sound_oracle import sound_caption_oracle, sound_oracle
from clip_common.synthetic.sounds import render_sound
from clip_common.synthetic.walking import write_walking

__all__ = [
    "REASONING_TYPES",
    "TYPES",
    "VERSION",
    "Claims",
    "Part",
    "Person",
    "Question",
    "Scene",
    "Thing",
    "answer",
    "attention_maps",
    "attribute_oracle",
    "balanced_questions",
    "captions",
    "draw_questions",
    "keypoints",
    "majority_answer_accuracy",
    "novelty",
    "oracle_of_folder",
    "oracle_scores",
    "part_captions",
    "part_scores",
    "person_captions",
    "person_scores",
    "questions",
    "read_caption",
    "read_parts",
    "read_questions",
    "read_scenes",
    "render",
    "render_part",
    "render_person",
    "render_sound",
    "render_walk",
    "sample_clip",
    "sample_part",
    "sample_person",
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
    "write_people",
    "write_pretraining",
    "write_questions",
    "write_sounds",
    "write_walking",
]
