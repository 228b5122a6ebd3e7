"""Parts in close-up: defects, masks, captions, folders on disk, and the guard."""

import csv
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from clip_common.synthetic import (
    attribute_oracle,
    novelty,
    oracle_of_folder,
    part_captions,
    part_scores,
    read_caption,
    read_parts,
    read_scenes,
    render_part,
    sample_part,
    sample_scene,
    thumbnail_auroc,
    write_mvtec,
    write_parts,
    write_pretraining,
)
from clip_common.synthetic.part_captions import DAMAGED, DAMAGED_AFTER, FLAWLESS, FLAWLESS_AFTER, read_part_caption
from clip_common.synthetic.parts import DEFECTS, HELD_KINDS, HELD_PAIRS
from clip_common.synthetic.scenes import KINDS

PARTS = st.builds(sample_part, st.integers(0, 10_000), st.integers(0, 10_000))


def test_a_part_is_the_same_in_whatever_order_and_another_seed_is_another():
    later = [sample_part(3, index) for index in (5, 2, 9)]
    assert later == [sample_part(3, index) for index in (5, 2, 9)]
    assert sample_part(3, 5) != sample_part(4, 5)
    first, second = (render_part(later[0], size=64) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


@settings(max_examples=25)
@given(PARTS, st.sampled_from([96, 112, 224]))
def test_a_defect_covers_two_thousandths_to_a_twentieth_and_is_all_that_differs(part, size):
    picture, mask = (np.asarray(image) for image in render_part(part, size=size))
    flawless, empty = (np.asarray(image) for image in render_part(part.flawless(), size=size))
    assert not empty.any()
    assert set(np.unique(mask)) <= {0, 255}
    assert 0.002 <= (mask > 0).mean() <= 0.05
    changed = np.abs(picture.astype(int) - flawless).max(axis=2)
    # pixels at the edge of the mask may be partly defective, and a shadow may disappear
    around = np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(5))) > 0
    assert (changed[~around] < 90).all()
    assert (changed[mask > 0] > 8).mean() > 0.4  # a scratch crosses details of its own colour


@pytest.mark.parametrize(("kind", "defect"), list(itertools.product(KINDS, DEFECTS)))
def test_every_kind_can_have_every_defect(kind, defect):
    for index in range(3):
        _, mask = render_part(sample_part(11, index, kinds=(kind,), defects=(defect,)), size=112)
        assert 0.002 <= (np.asarray(mask) > 0).mean() <= 0.05


def test_a_part_fills_at_least_half_of_the_width():
    for index in range(20):
        part = sample_part(5, index).flawless()
        picture = np.asarray(render_part(part, size=112)[0], dtype=int)
        # the same part on another background: the pixels that are equal in both pictures are the part
        other = type(part)(**{**part.to_dict(), "background": "snow" if part.background != "snow" else "grass"})
        same = np.abs(picture - np.asarray(render_part(other, size=112)[0], dtype=int)).max(axis=2) < 3
        columns = same.sum(axis=0) >= 3
        rows = same.sum(axis=1) >= 3
        assert max(np.ptp(np.flatnonzero(columns)), np.ptp(np.flatnonzero(rows))) >= 56


@given(PARTS)
@settings(max_examples=50)
def test_captions_are_five_different_ones_and_say_the_condition(part):
    for one, own, others in (
        (part, (*DAMAGED, *DAMAGED_AFTER), (*FLAWLESS, *FLAWLESS_AFTER)),
        (part.flawless(), (*FLAWLESS, *FLAWLESS_AFTER), (*DAMAGED, *DAMAGED_AFTER)),
    ):
        texts = part_captions(one)
        assert len(set(texts)) == 5
        assert texts == part_captions(one)
        for text in texts:
            words = f" {text.replace('undamaged', 'UN')} "
            assert part.kind in text
            assert not any(f" {phrase} " in words for phrase in others if phrase != "undamaged")
            if one.defect is None:
                assert any(phrase in text for phrase in own)


def test_what_is_held_out_by_hand():
    assert novelty("bottle", "crack") == "held kind"
    assert novelty("mug", "scratch") == "held pair"
    assert novelty("mug", "crack") == "known"
    assert set(HELD_PAIRS) == set(KINDS) - set(HELD_KINDS)
    assert set(HELD_PAIRS.values()) == set(DEFECTS)


def test_pretraining_never_shows_what_is_held_out_and_groups_each_pair(tmp_path):
    folder = write_pretraining(tmp_path / "set", scenes=3, parts=120, val_scenes=2, val_parts=10, size=32)
    parts = read_parts(folder)
    damaged = {name: part for name, part in parts.items() if part.defect is not None}
    assert damaged
    assert all(novelty(part.kind, part.defect) == "known" for part in damaged.values())
    assert {part.kind for part in parts.values()} >= set(HELD_KINDS)  # their words are known
    with (folder / "together.csv").open(newline="", encoding="utf-8") as stream:
        group = {row["image"]: row["group"] for row in csv.DictReader(stream)}
    for name, part in damaged.items():
        twin = name.replace("_damaged", "")
        assert parts[twin] == part.flawless()
        assert group[name] == group[twin]
    assert len(list((folder / "Images").iterdir())) == 2 * 5 + len(parts)


def test_pretraining_shows_every_picture_with_another_kind_beside_it(tmp_path):
    folder = write_pretraining(tmp_path / "set", scenes=6, parts=6, val_scenes=1, val_parts=1, size=32)
    scenes, parts = read_scenes(folder), read_parts(folder)
    with (folder / "together.csv").open(newline="", encoding="utf-8") as stream:
        group = {row["image"]: row["group"] for row in csv.DictReader(stream)}
    others = [name for name in (*scenes, *parts) if name.endswith("_other.jpg")]
    assert len(others) == 6 + 1 + 6 + 1
    for name in others:
        first = name.replace("_other", "")
        assert group[name] == group[first]
        if name in parts:
            assert parts[name].kind != parts[first].kind
            assert dataclasses.replace(parts[name], kind=parts[first].kind) == parts[first]
        else:
            pairs = list(zip(scenes[name].things, scenes[first].things, strict=True))
            (changed,) = [(one, two) for one, two in pairs if one != two]
            assert dataclasses.replace(changed[0], kind=changed[1].kind) == changed[1]
            assert scenes[name].background == scenes[first].background


@given(PARTS, st.booleans())
def test_every_claim_of_a_part_s_caption_is_true(part, damaged):
    part = part if damaged else part.flawless()
    for text in part_captions(part, 10):
        claims = read_part_caption(text)
        condition = claims.pop("condition")
        assert claims.pop("kind") == part.kind
        assert all(getattr(part, name) == value for name, value in claims.items()), text
        assert condition in (("damaged", part.defect) if damaged else ("flawless",)), text


def test_a_part_is_read_by_hand():
    read = read_part_caption("a close-up photo of a cracked, striped red mug on sand")
    assert read == {"kind": "mug", "colour": "red", "texture": "striped", "background": "sand", "condition": "crack"}
    assert read_part_caption("a mug with a piece missing")["condition"] == "missing part"
    with pytest.raises(ValueError, match="neither that the part is flawless nor"):
        read_part_caption("a red mug")


def test_the_oracle_tells_a_part_from_its_damaged_twin():
    part = sample_part(3, 5, kinds=("mug",), defects=("crack",))
    both = [part.flawless(), part]
    texts = [["a flawless mug"], ["a damaged mug"]]
    assert part_scores(both, [text for own in texts for text in own]).tolist() == [[2, -19], [-19, 2]]
    assert attribute_oracle(both, texts)["t2i/R@1"] == 1.0
    with pytest.raises(ValueError, match="one of these kinds"):
        attribute_oracle([part, sample_scene(0, 0)], texts)


def test_a_set_of_parts_shows_only_damage_that_pretraining_does_not(tmp_path):
    folder = write_parts(tmp_path / "set", train=12, val=3, test=4, size=32)
    parts = read_parts(folder)
    assert len(parts) == 2 * (12 + 3 + 4)
    damaged = {name: part for name, part in parts.items() if part.defect is not None}
    assert {novelty(part.kind, part.defect) for part in damaged.values()} == {"held kind", "held pair"}
    assert all(parts[name.replace("_damaged", "")] == part.flawless() for name, part in damaged.items())
    test = (folder / "Flickr_8k.testImages.txt").read_text(encoding="utf-8").split()
    assert len(test) == 8
    assert {name.replace("_damaged", "") for name in test} <= set(test)  # pairs stay in one split
    assert oracle_of_folder(folder, test, [part_captions(parts[name]) for name in test])["i2t/R@1"] > 0.5


def test_more_processes_draw_the_same_files(tmp_path):
    counts = {"scenes": 2, "parts": 2, "val_scenes": 1, "val_parts": 1, "size": 32}
    one, two = (write_pretraining(tmp_path / str(n), **counts, workers=n) for n in (1, 2))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_the_tree_is_laid_out_as_mvtec(tmp_path):
    said = []
    folder = write_mvtec(
        tmp_path / "ünïcode parts", kinds=("mug", "key"), defects=("hole", "missing part"), train=2, good=1, damaged=2,
        size=48, progress=lambda *at: said.append(at),
    )  # fmt: skip
    for kind in ("mug", "key"):
        counts = {str(path.parent.relative_to(folder / kind)): 0 for path in (folder / kind).rglob("*.png")}
        for path in (folder / kind).rglob("*.png"):
            counts[str(path.parent.relative_to(folder / kind))] += 1
            assert Image.open(path).size == (48, 48)
        assert counts == {
            "train/good": 2, "test/good": 1, "test/hole": 2, "test/missing_part": 2,
            "ground_truth/hole": 2, "ground_truth/missing_part": 2,
        }  # fmt: skip
    assert said[-1] == (14, 14)
    for name, part in read_parts(folder).items():
        picture, mask = render_part(part, size=48)
        assert np.array_equal(Image.open(folder / name), picture)
        if part.defect is not None:
            truth = folder / name.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
            assert np.array_equal(Image.open(truth), mask)


def test_a_linear_look_at_thumbnails_stays_below_65_hundredths():
    parts = [sample_part(21, index) for index in range(500)]
    both = [one for part in parts for one in (part, part.flawless())]
    pictures = [render_part(one, size=64)[0] for one in both]
    flags = [one.defect is not None for one in both]
    known = 700
    auroc = thumbnail_auroc(pictures[:known], flags[:known], pictures[known:], flags[known:])
    assert auroc < 0.65
    # the guard does detect an obvious difference: damaged pictures darkened
    dark = [one.point(lambda value: value // 2) if flag else one for one, flag in zip(pictures, flags, strict=True)]
    assert thumbnail_auroc(dark[:known], flags[:known], dark[known:], flags[known:]) > 0.9


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda folder: sample_part(-1, 0), "must not be negative"),
        (lambda folder: sample_part(0, 0, kinds=("spoon",)), "kinds must be some of mug.*got spoon"),
        (lambda folder: sample_part(0, 0, defects=()), "defects must be some of.*got none"),
        (lambda folder: render_part(sample_part(0, 0), size=31), "at least 32 pixels"),
        (lambda folder: part_captions(sample_part(0, 0), 11), "1 to 10"),
        (lambda folder: write_mvtec(folder, train=1, good=0, damaged=0), "exists"),
        (lambda folder: write_mvtec(folder / "new", train=0, good=0, damaged=0), "nothing to draw"),
        (lambda folder: write_mvtec(folder / "new", kinds=("spoon",), train=1, good=0, damaged=0), "got spoon"),
        (lambda folder: write_pretraining(folder, scenes=1, parts=1, val_scenes=0, val_parts=0), "exists"),
    ],
)
def test_bad_input_is_one_line(tmp_path, call, said):
    with pytest.raises(ValueError, match=said) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_pretraining_names_the_things_of_a_scene_in_one_caption_of_five(tmp_path):
    folder = write_pretraining(tmp_path / "set", scenes=4, parts=0, val_scenes=1, val_parts=0, size=32)
    with (folder / "captions.txt").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for index in range(5):
        said = [row["caption"] for row in rows if row["image"] == f"scene_0_{index:06d}.jpg"]
        assert len(said) == 5
        claims = read_caption(said[-1])
        assert list(claims.things) == [{"kind": thing.kind} for thing in sample_scene(0, index).things]
        assert said[-1].startswith("a photo of a")
