"""First pass and rerank: equal to a brute-force reference, for any codes, after any history, and in little memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
import toy_index as toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from clip_common.index import rerank
from clip_common.index.first import FIRST, BytePass, Rotation, SignPass, build_first_pass
from clip_common.index.segments import Segment, Texts
from clip_common.index.select import choose_groups, take_best

NUMBERS = st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), NUMBERS),
        st.tuples(st.just("delete"), NUMBERS),
        st.tuples(st.sampled_from(["save", "reopen", "search"]), st.just([])),
    ),
    max_size=20,
)


def in_memory(vectors_ND: torch.Tensor) -> Segment:
    none = Texts.of([""] * len(vectors_ND))
    return Segment(none, none, none, vectors_ND, deleted=torch.empty(0, dtype=torch.int64))


# against references


@settings(max_examples=100)
@given(
    steps=STEPS,
    seed=st.integers(0, 99),
    k=st.integers(1, 20),
    dim=st.none() | st.integers(1, toy.WIDTH),
    first=st.sampled_from(FIRST),
    stored=st.booleans(),
)
def test_a_rerank_of_all_items_is_exact_search_after_any_history(tmp_path_factory, steps, seed, k, dim, first, stored):
    folder = tmp_path_factory.mktemp("index") / "toy" if stored else None
    index = toy.index_in(folder)
    query_QD = toy.vectors_of([seed, seed + 100, seed + 200])
    for round, (step, numbers) in enumerate(steps):
        ids = [str(number) for number in numbers]
        if step == "update":
            index.update(ids, toy.vectors_of([number + 100 * round for number in numbers]))
        elif step == "delete":
            index.delete([id for id in ids if id in index])
        elif step == "search":
            index.nearest_to_each(query_QD, k, dim=dim, candidates=k + 20, first=first)
        elif stored:
            index.save()
            index = toy.index_in(folder) if step == "reopen" else index
    found = index.nearest_to_each(query_QD, k, dim=dim, candidates=k + 20, first=first)
    assert found == index.nearest_to_each(query_QD, k)
    assert found == [index.nearest(query_D, k, dim=dim, candidates=k + 20, first=first) for query_D in query_QD]


@settings(max_examples=60)
@given(
    count=st.integers(1, 300),
    parts=st.integers(1, 4),
    gone=st.sets(st.integers(0, 299)),
    dim=st.integers(1, 24),
    k=st.integers(1, 12),
    more=st.integers(0, 40),
    seed=st.integers(0, 9),
    stored=st.booleans(),
)
def test_prefix_and_rerank_is_the_reference(tmp_path_factory, count, parts, gone, dim, k, more, seed, stored):
    folder = tmp_path_factory.mktemp("index") / "toy" if stored else None
    vectors_ND, query_QD = toy.nested_vectors(count, 24, seed=seed), toy.nested_vectors(5, 24, seed=seed + 100)
    index = toy.filled(folder, vectors_ND, parts=parts)
    index.delete([str(row) for row in gone if row < count])
    alive = torch.tensor([row for row in range(count) if row not in gone], dtype=torch.int64)
    found = index.nearest_to_each(query_QD, k, dim=dim, candidates=k + more)
    for query_D, hits in zip(query_QD, found, strict=True):
        cosine_N = functional.cosine_similarity(vectors_ND[alive, :dim], query_D[None, :dim])
        if len({round(float(cosine), 5) for cosine in cosine_N}) < len(alive):
            continue  # of equal cosines, the last bit decides who is a candidate
        candidates = alive[cosine_N.sort(descending=True).indices[: k + more]]
        similarity_C = vectors_ND[candidates] @ query_D
        best = similarity_C.sort(descending=True).indices[:k]
        assert [hit.id for hit in hits] == [str(row) for row in candidates[best].tolist()]
        assert [hit.similarity for hit in hits] == pytest.approx(similarity_C[best].tolist(), abs=1e-6)


@settings(max_examples=200)
@given(data=st.data(), rows=st.integers(1, 4), columns=st.integers(1, 60))
def test_the_best_columns_are_those_of_a_stable_sort(data, rows, columns):
    count = data.draw(st.integers(1, columns))
    scores = st.lists(st.integers(-3, 3), min_size=columns, max_size=columns)
    score_TN = np.array([data.draw(scores) for _ in range(rows)], dtype=np.float32)
    groups = choose_groups(columns, count)
    assert count <= groups
    padded = np.pad(score_TN, ((0, 0), (0, -columns % groups)), constant_values=-np.inf)
    expected = np.sort(np.argsort(-score_TN, axis=1, kind="stable")[:, :count], axis=1)
    assert take_best(padded, count, groups=groups).tolist() == expected.tolist()


def test_few_groups_may_hold_all_items_that_are_left():
    """More deleted columns than groups: fewer groups than results hold a score."""
    score_TN = np.full((1, 400), -np.inf, dtype=np.float32)
    score_TN[0, [0, 100, 200, 300]] = [1, 2, 3, 4]  # one group of 100
    assert take_best(score_TN, 3, groups=100).tolist() == [[100, 200, 300]]


@pytest.mark.parametrize("first", FIRST)
def test_many_tiles_threads_and_segments_find_the_same(tmp_path, monkeypatch, first):
    vectors_ND, query_QD = toy.nested_vectors(600, 32, seed=0), toy.nested_vectors(40, 32, seed=1)
    whole = toy.filled(None, vectors_ND).nearest_to_each(query_QD, 5, candidates=50, first=first)
    monkeypatch.setattr(rerank, "TILE_SCORES", 3 * 600)
    monkeypatch.setattr("clip_common.index.first.TILE_NUMBERS", 32 * 50)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    parts = toy.filled(tmp_path / "index", vectors_ND, parts=5)
    assert len(parts.parts) > 1
    assert parts.nearest_to_each(query_QD, 5, candidates=50, first=first) == whole


@pytest.mark.parametrize("first", FIRST)
def test_of_equal_items_the_one_added_first_comes_first(first):
    index = toy.filled(None, toy.nested_vectors(1, 24, seed=0).repeat(100, 1))
    hits = index.nearest(toy.nested_vectors(1, 24, seed=1)[0], 5, dim=16, candidates=10, first=first)
    assert [hit.id for hit in hits] == ["0", "1", "2", "3", "4"]
    assert len({hit.similarity for hit in hits}) == 1


# codes


def test_bytes_are_the_rounded_prefix_with_one_scale_for_each_vector():
    vectors_ND = torch.tensor([[3.0, -4.0, 9.0], [0.0, 0.0, 1.0], [1e-3, 2e-3, 0.0]])
    codes = build_first_pass([in_memory(vectors_ND)], first="int8", dim=2)
    assert isinstance(codes, BytePass)
    assert codes.code_Nd.tolist() == [[95, -127], [0, 0], [64, 127]]  # 127 × 3 / 4 is 95.25, 127 / 2 is 63.5
    assert codes.scale_N.tolist() == pytest.approx([0.8 / 127, 0, 2 / 5**0.5 / 127])


@pytest.mark.parametrize("dim", [1, 64, 65, 200])
def test_the_rotation_keeps_angles_and_signs_count_them(dim):
    rotation, x_SD = Rotation(dim), toy.nested_vectors(300, dim, seed=0)
    turned_SD = rotation.rotate(x_SD) / rotation.width
    assert torch.allclose(turned_SD @ turned_SD.T, x_SD @ x_SD.T, atol=1e-5)
    signs = build_first_pass([in_memory(x_SD)], first="binary", dim=dim)
    assert isinstance(signs, SignPass)
    assert signs.word_WN.nbytes == len(x_SD) * rotation.width // 8
    score_TN = torch.empty(2, len(x_SD))
    signs.compare(x_SD[:2], score_TN)
    different = (turned_SD[:2, None] > 0) != (turned_SD[None] > 0)
    assert torch.equal(score_TN, -different.sum(dim=2).float())


def test_recall_on_a_nested_spectrum():
    """Short codes without a rotation or a scale for each vector find under a third here."""
    vectors_ND = toy.nested_vectors(5000, 256, seed=0)
    query_QD = functional.normalize(vectors_ND[:50] + 0.5 * toy.nested_vectors(50, 256, seed=1), dim=1)
    index = toy.filled(None, vectors_ND)
    exact = index.nearest_to_each(query_QD, 10)
    for options, bar in (
        ({"dim": 64, "candidates": 100}, 0.99),
        ({"candidates": 20, "first": "int8"}, 0.99),
        ({"candidates": 200, "first": "binary"}, 0.85),
    ):
        found = index.nearest_to_each(query_QD, 10, **options)
        shared = [len({hit.id for hit in a} & {hit.id for hit in b}) / 10 for a, b in zip(found, exact, strict=True)]
        assert np.mean(shared) >= bar, options


# memory


def mapped_kib(name: str) -> int:
    """Resident KiB of all mappings of files of this name."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if "-" in line.split(" ")[0]:
            inside = name in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.parametrize("first", ["int8", "binary"])
def test_short_codes_leave_the_mapped_vectors_on_disk(tmp_path, first):
    vectors_ND, query_QD = toy.nested_vectors(8192, 256, seed=0), toy.nested_vectors(50, 256, seed=1)
    index = toy.filled(tmp_path / "Hünd 雪" / "index", vectors_ND)
    index.nearest_to_each(query_QD, 10, candidates=500, first=first)
    resident = mapped_kib("segment-")
    assert resident < 8192 * 256 * 4 / 1024 / 4
    index.nearest_to_each(query_QD, 10)
    assert mapped_kib("segment-") > resident + 4096  # the exact search reads everything


def test_a_file_that_was_removed_is_still_searched(tmp_path):
    vectors_ND = toy.nested_vectors(300, 24, seed=0)
    index = toy.filled(tmp_path / "index", vectors_ND)
    before = index.nearest(vectors_ND[7], 5, candidates=20, first="int8")
    for file in (tmp_path / "index").iterdir():
        file.unlink()
    assert index.nearest(vectors_ND[7], 5, candidates=20, first="int8") == before
    assert before[0].id == "7"


def test_codes_are_kept_until_the_index_changes(monkeypatch):
    builds: list[str] = []

    def build(*args, first, dim):
        builds.append(f"{first} {dim}")
        return build_first_pass(*args, first=first, dim=dim)

    monkeypatch.setattr(rerank, "build_first_pass", build)
    index = toy.filled(None, toy.nested_vectors(50, 24, seed=0))
    for _ in range(2):
        index.nearest(torch.ones(24), 1, dim=8, candidates=3)
        index.nearest(torch.ones(24), 1, candidates=3, first="int8")
    index.delete(["3"])
    index.nearest(torch.ones(24), 1, dim=8, candidates=3)
    assert builds == ["float32 8", "int8 24", "float32 8"]


# limits


@pytest.mark.parametrize("first", FIRST)
def test_an_empty_index_has_no_candidates(first):
    index = toy.filled(None, toy.nested_vectors(2, 24, seed=0))
    index.delete(["0", "1"])
    assert index.nearest_to_each(torch.ones(2, 24), 3, candidates=3, first=first) == [[], []]
    assert toy.index_in(None).nearest(torch.ones(24), 3, candidates=3, first=first) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"candidates": 4}, "candidates=4 for k=5: expected at least k"),
        ({"first": "int8"}, "without candidates"),
        ({"first": "int4", "candidates": 9}, "first='int4': expected one of float32, int8, binary"),
        ({"dim": 25, "candidates": 9}, "dim=25: expected 1 to 24"),
        ({"unique": 0.0}, r"unique=0\.0"),
    ],
)
def test_settings_that_cannot_be_searched_are_refused(options, match):
    index = toy.filled(None, toy.nested_vectors(9, 24, seed=0))
    with pytest.raises(ValueError, match=match) as error:
        index.nearest(torch.ones(24), 5, **options)
    assert "\n" not in str(error.value)
