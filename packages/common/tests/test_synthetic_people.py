"""Walking people: captions that say what the picture shows, and the ceiling of who reads them."""

import pytest

from clip_common.synthetic import (
    Person,
    Scene,
    attribute_oracle,
    oracle_of_folder,
    person_captions,
    person_scores,
    render_person,
    sample_person,
    sample_scene,
    write_people,
)
from clip_common.synthetic.people import CLAIMS, read_person_caption
from clip_common.tables import read_json_lines


def person(**words: str) -> Person:
    base = {"hair": "blond", "shirt": "red", "trousers": "navy", "shoes": "blue", "facing": "left"}
    return Person(seed=0, index=0, **base | {"wall": "bricks", "floor": "sand"} | words)


def test_a_caption_claims_what_the_picture_shows():
    said = set()
    for index in range(60):
        one = sample_person(3, index)
        texts = person_captions(one)
        assert len(set(texts)) == 5
        for text in texts:
            claims = read_person_caption(text)
            assert len(claims) >= 2
            assert all(getattr(one, name) == value for name, value in claims.items()), text
            said |= set(claims)
    assert said == set(CLAIMS)


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("a red-haired walker in a red shirt and with blue shoes", {"hair": "red", "shirt": "red", "shoes": "blue"}),
        ("a person in navy trousers with sand behind", {"trousers": "navy", "wall": "sand"}),
        ("a person going right past a wall of wood over snow", {"facing": "right", "wall": "wood", "floor": "snow"}),
    ],
)  # fmt: skip
def test_claims_by_hand(text, claims):
    assert read_person_caption(text) == claims


def test_a_caption_of_something_else_is_refused():
    with pytest.raises(ValueError, match="says nothing about a person"):
        read_person_caption("a red mug on a table")


def test_scores_by_hand():
    people = [person(), person(shirt="green")]
    scores = person_scores(people, ["a person in a red shirt going left", "a person in a green shirt"])
    assert scores.tolist() == [[2.0, 1 - 20], [-20.0, 1.0]]


def test_kinds_are_not_mixed():
    with pytest.raises(ValueError, match="one of these kinds"):
        attribute_oracle([person(), sample_scene(0, 0)], [["a"], ["b"]])
    assert isinstance(sample_scene(0, 0), Scene)


def test_a_set_is_written_with_its_ceiling(tmp_path):
    folder = write_people(tmp_path / "leute", train=4, val=2, test=3, size=48)
    rows = [row for _, row in read_json_lines(folder / "people.jsonl")]
    assert [Person.from_dict(row) for row in rows] == [sample_person(1, index) for index in range(9)]
    names = [row["image"] for row in rows]
    assert len(list((folder / "Images").iterdir())) == 9
    ceiling = oracle_of_folder(folder, names, [person_captions(sample_person(1, index)) for index in range(9)])
    assert ceiling["rsum"] > 550  # nine people are easy to tell apart
    assert render_person(sample_person(1, 0), size=48).size == (48, 48)


def test_the_picture_is_of_the_person():
    """The pixels of the shirt have its colour: a shirt changes, and so does the picture."""
    one = render_person(sample_person(1, 0), size=64)
    assert one.tobytes() == render_person(sample_person(1, 0), size=64).tobytes()
    assert one.tobytes() != render_person(sample_person(1, 1), size=64).tobytes()
