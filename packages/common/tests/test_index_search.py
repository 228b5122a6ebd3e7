"""Search in an index: equal to a brute-force reference, whatever was added, deleted and saved before."""

import numpy as np
import pytest
import torch
import toy_index as toy
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.index import VectorIndex, exact

NUMBERS = st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), NUMBERS),
        st.tuples(st.just("delete"), NUMBERS),
        st.tuples(st.sampled_from(["save", "reopen", "search"]), st.just([])),
    ),
    max_size=30,
)


def brute_force(vectors_ND: np.ndarray, query_D: np.ndarray, k: int) -> list[int]:
    similarity_N = vectors_ND @ query_D
    return sorted(range(len(vectors_ND)), key=lambda row: (-similarity_N[row], row))[:k]


@settings(max_examples=150)
@given(steps=STEPS, seed=st.integers(0, 99), k=st.integers(1, 20), stored=st.booleans())
def test_search_finds_what_brute_force_finds_after_any_history(tmp_path_factory, steps, seed, k, stored):
    folder = tmp_path_factory.mktemp("index") / "toy" if stored else None
    index, expected = toy.index_in(folder), {}
    query_D = torch.randint(-2, 3, (toy.WIDTH,), generator=torch.Generator().manual_seed(seed)).float()
    for round, (step, numbers) in enumerate(steps):
        ids = [str(number) for number in numbers]
        if step == "update":
            fresh_MD = toy.vectors_of([number + 100 * round for number in numbers])
            index.update(ids, fresh_MD, stamps=[str(round)] * len(ids))
            for id, vector in zip(ids, fresh_MD.tolist(), strict=True):
                expected.pop(id, None)  # a replaced item comes last
                expected[id] = (str(round), vector)
        elif step == "delete":
            present = [id for id in ids if id in expected]
            index.delete(present)
            for id in present:
                del expected[id]
        elif step == "search":
            index.nearest(query_D, k)
        elif stored:
            index.save()
            index = toy.index_in(folder) if step == "reopen" else index
    assert index.ids == list(expected)
    assert len(index) == len(expected)
    assert toy.contents(index) == expected
    found = index.nearest(query_D, k)
    vectors_ND = np.array([vector for _, vector in expected.values()]).reshape(-1, toy.WIDTH)
    rows = brute_force(vectors_ND, query_D.numpy(), k)
    assert [hit.id for hit in found] == [list(expected)[row] for row in rows]
    assert [hit.similarity for hit in found] == (vectors_ND @ query_D.numpy())[rows].tolist()


@settings(max_examples=100)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(any),
    queries=st.integers(1, 5),
    dim=st.none() | st.integers(1, toy.WIDTH),
)
def test_rows_are_those_of_a_full_sort_over_any_parts(data, sizes, queries, dim):
    parts = [toy.vectors_of([data.draw(st.integers(0, 9)) for _ in range(size)]) for size in sizes]
    whole_ND = torch.cat(parts)
    deleted = torch.tensor(data.draw(st.lists(st.integers(0, len(whole_ND) - 1), unique=True)), dtype=torch.int64)
    query_QD = toy.vectors_of(range(queries))
    k = data.draw(st.integers(1, 40))
    lengths_N = None if dim is None else exact.measure_prefixes(parts, dim)
    found = exact.find_nearest(parts, query_QD, k, deleted=deleted, lengths_N=lengths_N, dim=dim)
    assert len(found) == queries
    for (rows, similarities), query_D in zip(found, query_QD, strict=True):
        if dim is None:
            similarity_N = (whole_ND @ query_D).tolist()
        else:
            similarity_N = torch.nn.functional.cosine_similarity(whole_ND[:, :dim], query_D[None, :dim]).tolist()
        alive = [row for row in range(len(whole_ND)) if row not in deleted.tolist()]
        best = sorted(alive, key=lambda row: (-similarity_N[row], row))[:k]
        assert similarities == pytest.approx([similarity_N[row] for row in best], abs=1e-6)
        assert len(set(rows)) == len(rows) == len(best)
        if dim is None:  # whole numbers: no rounding, so equal similarities are equal
            assert rows == best


def test_queries_searched_in_turn_find_the_same(monkeypatch):
    index = toy.index_in(None)
    index.add([str(row) for row in range(50)], toy.vectors_of(range(50)))
    query_QD = toy.vectors_of(range(100, 107))
    whole = index.nearest_to_each(query_QD, 5)
    monkeypatch.setattr(exact, "TILE_SCORES", 100)  # two queries at a time
    assert index.nearest_to_each(query_QD, 5) == whole
    assert whole == [index.nearest(query_D, 5) for query_D in query_QD]


def test_a_prefix_is_compared_by_its_cosine():
    """By hand: the first two numbers of `long` and `short` point the same way, those of `other` do not."""
    index = toy.index_in(None)
    vectors_ND = torch.tensor([[3.0, 4.0, 0.0, 9.0], [0.3, 0.4, 1.0, 0.0], [4.0, -3.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    index.add(["long", "short", "other", "nothing"], vectors_ND)
    found = index.nearest(torch.tensor([30.0, 40.0, -5.0, 2.0]), 4, dim=2)
    assert {hit.id: round(hit.similarity, 6) for hit in found} == {"long": 1, "short": 1, "other": 0, "nothing": 0}
    index.add(["more"], torch.tensor([[-3.0, -4.0, 0.0, 0.0]]))
    last = index.nearest(torch.tensor([30.0, 40.0, -5.0, 2.0]), 5, dim=2)[-1]
    assert (last.id, last.similarity) == ("more", pytest.approx(-1.0))


def test_a_model_and_its_prefix_agree_at_full_width():
    torch.manual_seed(0)
    index = VectorIndex(**toy.ABOUT)
    index.add([str(row) for row in range(200)], torch.nn.functional.normalize(torch.randn(200, 32), dim=1))
    query_D = torch.nn.functional.normalize(torch.randn(32), dim=0)
    whole, prefix = index.nearest(query_D, 20), index.nearest(query_D, 20, dim=32)
    assert [hit.id for hit in whole] == [hit.id for hit in prefix]
    assert [hit.similarity for hit in whole] == pytest.approx([hit.similarity for hit in prefix], abs=1e-6)


def test_an_answer_holds_what_was_stored_with_its_item():
    index = toy.index_in(None)
    index.add(["a", "b"], toy.vectors_of([1, 2]), payloads=[{"caption": "ein Hünd 雪", "kind": "image"}, None])
    assert {hit.id: hit.payload for hit in index.nearest(toy.vectors_of([1])[0], 2)} == {
        "a": {"caption": "ein Hünd 雪", "kind": "image"},
        "b": None,
    }
    assert index.payload("a")["kind"] == "image"


def test_an_empty_index_finds_nothing():
    assert toy.index_in(None).nearest(torch.zeros(toy.WIDTH), 3) == []
    index = toy.index_in(None)
    index.add(["a"], toy.vectors_of([1]))
    index.delete(["a"])
    assert index.nearest_to_each(torch.zeros(2, toy.WIDTH), 3) == [[], []]


@pytest.mark.parametrize(
    ("query", "options", "match"),
    [
        (torch.zeros(toy.WIDTH), {"k": 0}, "k=0"),
        (torch.zeros(toy.WIDTH + 1), {"k": 1}, r"\(Q, 4\)"),
        (torch.tensor([1.0, torch.nan, 0.0, 0.0]), {"k": 1}, "NaN"),
        (torch.zeros(toy.WIDTH), {"k": 1, "dim": 0}, "dim=0"),
        (torch.zeros(toy.WIDTH), {"k": 1, "dim": 5}, "dim=5: expected 1 to 4"),
    ],
)
def test_a_query_that_cannot_be_searched_is_refused(query, options, match):
    index = toy.index_in(None)
    index.add(["a"], toy.vectors_of([1]))
    with pytest.raises(ValueError, match=match) as error:
        index.nearest(query, **options)
    assert "\n" not in str(error.value)
