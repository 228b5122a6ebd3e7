"""Scenes, their pictures and captions. Tests check attributes, never exact pixels, because rasterisers change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_common.synthetic import Scene, Thing, captions, read_caption, render, sample_scene
from clip_common.synthetic.captions import BACKGROUND_WORDS, WORDS
from clip_common.synthetic.draw import PALETTE
from clip_common.synthetic.scenes import BACKGROUNDS, COLOURS, KINDS, PLACES, SIDE, SIZES, TEXTURES, centre

indices = st.integers(min_value=0, max_value=10_000)


def alone(**words: str) -> Scene:
    thing = {"kind": "mug", "colour": "red", "texture": "plain", "size": "large", "place": "centre"} | words
    return Scene(seed=0, index=0, things=(Thing(**thing),), background="sand")


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    return np.asarray(render(scene, size=size), dtype=np.float32)


@given(indices)
def test_a_scene_does_not_depend_on_the_order_in_which_scenes_are_drawn(index):
    first = sample_scene(3, index)
    sample_scene(3, index + 1)
    assert sample_scene(3, index) == first
    assert Scene.from_dict(first.to_dict()) == first


@given(indices)
def test_a_scene_holds_one_to_four_things_at_different_places(index):
    scene = sample_scene(0, index)
    assert 1 <= len(scene.things) <= 4
    assert len({thing.place for thing in scene.things}) == len(scene.things)


def test_every_word_occurs():
    scenes = [sample_scene(0, index) for index in range(400)]
    things = [thing for scene in scenes for thing in scene.things]
    for name, words in (
        ("kind", KINDS),
        ("colour", COLOURS),
        ("texture", TEXTURES),
        ("size", SIZES),
        ("place", PLACES),
    ):
        assert {getattr(thing, name) for thing in things} == set(words)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert len(KINDS) >= 12


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_its_colour_at_its_place(colour):
    image = pixels(alone(colour=colour, kind="star", place="top left"))
    x, y = (round(position * 64) for position in centre("top left"))
    found = np.median(image[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3), axis=0)
    nearest = min(PALETTE, key=lambda name: np.abs(np.array(PALETTE[name]) - found).sum())
    assert nearest == colour


def test_another_place_moves_the_picture_and_a_larger_size_covers_more():
    empty = pixels(alone(place="bottom right", size="small"))
    covered = {}
    for size in SIZES:
        changed = np.abs(pixels(alone(size=size)) - empty).sum(axis=2)[16:48, 16:48] > 60
        covered[size] = changed.mean()
    assert covered["small"] < covered["medium"] < covered["large"]
    assert SIDE["small"] < SIDE["medium"] < SIDE["large"]


@pytest.mark.parametrize("texture", ["striped", "dotted", "checked"])
def test_a_texture_shows_at_64_pixels(texture):
    plain, textured = (pixels(alone(kind="house", texture=name))[20:44, 20:44] for name in ("plain", texture))
    assert np.abs(plain - textured).max(axis=2).mean() > 15


def test_kinds_look_different():
    images = np.stack([pixels(alone(kind=kind)) for kind in KINDS])
    distance = np.abs(images[:, None] - images[None]).mean(axis=(2, 3, 4))
    assert distance[~np.eye(len(KINDS), dtype=bool)].min() > 3


@pytest.mark.parametrize("size", [32, 64, 112])
def test_a_picture_has_the_size_that_was_asked_for_and_is_the_same_twice(size):
    scene = sample_scene(0, 5)
    assert render(scene, size=size).size == (size, size)
    assert np.array_equal(render(scene, size=size), render(scene, size=size))


def test_a_picture_too_small_to_read_is_refused():
    with pytest.raises(ValueError, match="16 pixels"):
        render(sample_scene(0, 0), size=8)


@given(indices)
def test_captions_differ_and_every_claim_of_each_holds(index):
    scene = sample_scene(0, index)
    texts = captions(scene)
    assert len(set(texts)) == 5
    for text in texts:
        claims = read_caption(text)
        assert claims.background in (None, scene.background)
        left = list(scene.things)
        for claimed in claims.things:  # each claimed thing is one of those not yet matched
            fits = [thing for thing in left if all(getattr(thing, name) == value for name, value in claimed.items())]
            assert fits, (text, claimed)
            if len(fits) == 1:
                left.remove(fits[0])


def test_a_caption_reads_as_it_was_meant():
    claims = read_caption("in the snow, a little striped red mug at the top left and a big plain key in the middle")
    assert claims.background == "snow"
    assert claims.things == (
        {"size": "small", "texture": "striped", "colour": "red", "kind": "mug", "place": "top left"},
        {"size": "large", "texture": "plain", "kind": "key", "place": "centre"},
    )
    with pytest.raises(ValueError, match="no thing"):
        read_caption("a dog on the beach")


def test_a_phrase_means_one_thing():
    phrases = [phrase for values in (*WORDS.values(), BACKGROUND_WORDS) for said in values.values() for phrase in said]
    assert len(phrases) == len(set(phrases))


@pytest.mark.parametrize("count", [0, 11])
def test_a_scene_has_not_endless_captions(count):
    with pytest.raises(ValueError, match="1 to 10"):
        captions(sample_scene(0, 0), count)
