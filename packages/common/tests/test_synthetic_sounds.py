"""Sounds of scenes: audible and inaudible attributes, the ceilings, and the folder with WAV files."""

import dataclasses

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clip_common.synthetic import Scene, Thing, attribute_oracle, captions, sample_scene
from clip_common.synthetic.jsonl import read_scenes, write_sounds
from clip_common.synthetic.scenes import COLOURS, KINDS, SIZES
from clip_common.synthetic.sound_oracle import score_sounds, sound_caption_oracle, sound_oracle
from clip_common.synthetic.sounds import (
    PAUSE,
    PITCH,
    SAMPLE_RATE,
    SECONDS,
    VOICES,
    in_reading_order,
    render_sound,
)
from clip_common.tables import read_json_lines

indices = st.integers(min_value=0, max_value=10_000)


def scene(*things: Thing, index: int = 0, background: str = "sand") -> Scene:
    return Scene(seed=0, index=index, things=things, background=background)


def thing(**words: str) -> Thing:
    return Thing(**{"kind": "bottle", "colour": "red", "texture": "plain", "size": "large", "place": "centre"} | words)


def loud(sound: np.ndarray) -> np.ndarray:
    """Return for each hundredth of a second whether a sound is audible."""
    frames = sound[: len(sound) // 160 * 160].reshape(-1, 160)
    return np.sqrt((frames**2).mean(axis=1)) > 0.012


@given(indices)
def test_a_sound_is_the_same_twice_and_within_range(index):
    drawn = sample_scene(3, index)
    sound = render_sound(drawn)
    assert np.array_equal(sound, render_sound(drawn))
    assert sound.dtype == np.float32
    assert sound.ndim == 1
    assert 0.05 < np.abs(sound).max() <= 1
    assert 0.3 * SAMPLE_RATE < len(sound) < 4 * SAMPLE_RATE


@given(indices)
def test_what_makes_no_sound_changes_no_sample(index):
    drawn = sample_scene(0, index)
    silent = tuple(dataclasses.replace(one, texture="dotted") for one in drawn.things)
    assert np.array_equal(
        render_sound(drawn), render_sound(dataclasses.replace(drawn, things=silent, background="snow"))
    )


@given(indices, st.randoms(use_true_random=False))
def test_things_sound_in_the_reading_order_of_their_places(index, random):
    drawn = sample_scene(0, index)
    mixed = random.sample(drawn.things, k=len(drawn.things))
    assert np.array_equal(render_sound(drawn), render_sound(dataclasses.replace(drawn, things=tuple(mixed))))


def test_the_reading_order_by_hand():
    right, below, left = thing(place="top right"), thing(place="left"), thing(place="top left")
    assert in_reading_order(scene(right, below, left)) == [left, right, below]


def test_the_same_words_sound_a_little_different_each_time():
    one, two = (render_sound(scene(thing(), index=index)) for index in (0, 1))
    assert not np.array_equal(one[:4000], two[:4000])


@pytest.mark.parametrize("size", SIZES)
def test_size_is_length(size):
    for index in range(20):
        heard = loud(render_sound(scene(thing(size=size), index=index))).sum() / 100
        assert heard == pytest.approx(SECONDS[size], abs=0.05 * SECONDS[size] + 0.02)


@pytest.mark.parametrize("colour", COLOURS)
def test_colour_is_pitch(colour):
    for index in range(20):
        sound = render_sound(scene(thing(colour=colour), index=index))
        strongest = np.abs(np.fft.rfft(sound, n=4 * SAMPLE_RATE)).argmax() / 4
        assert abs(12 * np.log2(strongest / PITCH[colour])) < 0.4  # semitones; the nearest other colour is three away


def test_each_thing_is_heard_by_itself():
    held = [kind for kind in KINDS if VOICES[kind][1] == "held"]
    places = ("top", "left", "right", "bottom")
    for count in (1, 2, 3, 4):
        things = [thing(kind=held[i], size="small", place=places[i]) for i in range(count)]
        sounding = loud(render_sound(scene(*things)))
        starts = np.flatnonzero(np.diff(sounding.astype(int), prepend=0) == 1)
        assert len(starts) == count
        assert np.diff(starts / 100) == pytest.approx(SECONDS["small"] + PAUSE, abs=0.03)


def spectrum_and_course(sound: np.ndarray) -> np.ndarray:
    """Return log power by frequency, averaged over time, and by time, summed over frequency: 257 + 49 numbers."""
    second = np.pad(sound, (0, SAMPLE_RATE))[:SAMPLE_RATE].astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(second, 512)[::320] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    return np.concatenate([np.log(power.mean(axis=0) + 1e-4), np.log(power.sum(axis=1) + 1e-2)])


def test_kind_colour_and_size_are_audible_to_a_linear_classifier():
    random = np.random.default_rng(0)
    things = [
        thing(kind=str(random.choice(KINDS)), colour=str(random.choice(COLOURS)), size=str(random.choice(SIZES)))
        for _ in range(1200)
    ]
    features = np.stack([spectrum_and_course(render_sound(scene(one, index=i))) for i, one in enumerate(things)])
    accuracy = {}
    for name in ("kind", "colour", "size"):
        words = [getattr(one, name) for one in things]
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        accuracy[name] = classifier.fit(features[:800], words[:800]).score(features[800:], words[800:])
    assert min(accuracy.values()) > 0.9, accuracy  # chance: 1/16, 1/8 and 1/3


def test_the_ceiling_by_hand():
    red, blue = thing(), thing(colour="blue", place="bottom")
    # the first two differ only in inaudible attributes, so each is first half of the time; the third is unique
    metrics = sound_oracle([scene(red), scene(dataclasses.replace(red, texture="dotted", place="top")), scene(blue)])
    assert metrics["s2i/R@1"] == metrics["i2s/R@1"] == pytest.approx(2 / 3)
    assert metrics["s2i/R@5"] == 1.0
    assert metrics["rsum"] == pytest.approx(100 * (4 / 3 + 4))
    # the order is audible: blue after red, red after blue
    other = scene(dataclasses.replace(red, place="bottom"), dataclasses.replace(blue, place="centre"))
    assert sound_oracle([scene(red, blue), other])["s2i/R@1"] == 1.0


def test_the_ceiling_of_a_thousand_scenes():
    metrics = sound_oracle([sample_scene(0, index) for index in range(1000)])
    assert metrics["s2i/R@1"] == pytest.approx(0.93, abs=0.03)
    assert metrics["s2i/R@10"] > 0.99


def test_the_ceiling_between_sounds_and_captions():
    mug, key = thing(kind="mug"), thing(kind="key", texture="dotted")
    # the last two scenes sound alike, and the texture that their captions name is inaudible
    texts = [["a red mug"], ["a large dotted red key"], ["a dotted red thing: a key"]]
    metrics = sound_caption_oracle([scene(mug), scene(key), scene(key)], texts)
    assert metrics["t2s/R@1"] == pytest.approx(2 / 3)
    assert metrics["t2s/R@5"] == 1.0
    scenes = [sample_scene(0, index) for index in range(400)]
    said = [captions(one) for one in scenes]
    heard, seen = sound_caption_oracle(scenes, said), attribute_oracle(scenes, said)
    assert 0.7 < heard["t2s/R@1"] < seen["t2i/R@1"]


def test_the_order_of_the_tones_must_allow_the_places_that_a_caption_names():
    """Two things, whose tones a listener hears in reading order."""
    mug, key = (Thing(kind=kind, colour="red", size="small", texture="plain", place="top") for kind in ("mug", "key"))
    first = scene(dataclasses.replace(mug, place="top left"), dataclasses.replace(key, place="centre"))
    other = scene(dataclasses.replace(mug, place="right"), dataclasses.replace(key, place="left"))
    fits = [
        ("a mug at the top left and a key in the centre", (True, False)),
        ("a key on the left and a mug on the right", (False, True)),
        ("a key at the top left and a mug", (False, True)),  # nothing is read before it
        ("a mug at the bottom right and a key", (False, True)),  # nothing is read after it
        ("a mug in the centre and a key", (True, True)),
        ("a key and a mug", (True, True)),
    ]
    scores_CN = score_sounds([first, other], [text for text, _ in fits])
    assert [tuple(row > 0) for row in scores_CN] == [both for _, both in fits]


def rows_of(folder):
    return [row for _, row in read_json_lines(folder / "data.jsonl")]


def test_a_folder_holds_pictures_sounds_and_captions(tmp_path):
    said = []
    folder = write_sounds(
        tmp_path / "deep" / "world", train=4, val=1, test=2, size=32, progress=lambda *at: said.append(at)
    )
    rows = rows_of(folder)
    assert [row["split"] for row in rows] == ["train"] * 4 + ["val"] + ["test"] * 2
    scenes = read_scenes(folder)
    assert list(scenes) == [row["image"] for row in rows]
    for row in rows:
        assert Image.open(folder / row["image"]).size == (32, 32)
        assert soundfile.info(folder / row["audio"]).subtype == "PCM_16"
        samples, rate = soundfile.read(folder / row["audio"], dtype="float32")
        assert rate == SAMPLE_RATE
        assert samples == pytest.approx(render_sound(scenes[row["image"]]), abs=1 / 2**14)
        assert row["captions"] == captions(scenes[row["image"]])
    assert said[-1] == (7, 7)
    assert len({row["image"] for row in rows}) == len({row["audio"] for row in rows}) == 7
