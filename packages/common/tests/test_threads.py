"""Pieces of work on threads: same results and last bits, nothing left behind in torch's settings."""

import os
import threading

import pytest
import torch
from toy_losses import batch

from clip_common.losses import HardNegative, InfoNCE, Matryoshka, SigLIP, tiles
from clip_common.metrics import image_text_retrieval, ranking, retrieval_metrics
from clip_common.threads import map_pieces

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """`threads(n)` sets torch's number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_every_piece_runs_on_one_thread_and_others_keep_theirs(threads):
    threads(3)
    seen, later = list(map_pieces(lambda _: torch.get_num_threads(), range(10), device=CPU)), []
    assert seen == [1] * 10
    assert torch.get_num_threads() == 3
    started_later = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    started_later.start()
    started_later.join()
    assert later == [3]
    names = list(map_pieces(lambda _: threading.current_thread().name, range(2), device=CPU))
    assert names == [threading.current_thread().name] * 2  # fewer pieces than threads: every operation on all of them


def test_results_come_in_order_and_pieces_that_share_a_name_follow_each_other(threads):
    threads(3)
    running, order = set(), {0: [], 1: []}

    def work(piece):
        name = piece % 2
        assert name not in running
        running.add(name)
        torch.randn(100, 100).sum()
        order[name].append(piece)
        running.remove(name)
        return piece

    assert list(map_pieces(work, range(40), device=CPU, touches=lambda piece: [piece % 2])) == list(range(40))
    assert order == {0: list(range(0, 40, 2)), 1: list(range(1, 40, 2))}


def test_an_error_of_a_piece_is_the_callers_and_the_next_call_works(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        list(map_pieces(lambda piece: 1 // (piece - 3), range(8), device=CPU, touches=lambda piece: ["all"]))
    assert list(map_pieces(abs, range(-4, 0), device=CPU)) == [4, 3, 2, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_makes_threads_of_its_own(threads):
    threads(2)
    assert list(map_pieces(abs, range(4), device=CPU)) == [0, 1, 2, 3]
    child = os.fork()
    if child == 0:
        os._exit(0 if list(map_pieces(abs, range(4), device=CPU)) == [0, 1, 2, 3] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nested_pieces_and_gradient_modes(threads):
    threads(2)
    assert (
        list(map_pieces(lambda _: list(map_pieces(abs, range(4), device=CPU)), range(4), device=CPU))
        == [[0, 1, 2, 3]] * 4
    )
    weight = torch.ones(3, requires_grad=True)
    assert not any(out.requires_grad for out in map_pieces(lambda _: weight * 2, range(4), device=CPU))
    with torch.inference_mode():
        total = torch.zeros(4)

        def add(piece):
            total[piece] += 1  # outside of inference mode this is an error

        list(map_pieces(add, range(4), device=CPU))
    assert total.sum() == 4


@pytest.mark.parametrize("ids", [None, torch.arange(97) % 60], ids=["plain", "ids"])
@pytest.mark.parametrize("form", [InfoNCE(), SigLIP(), Matryoshka(HardNegative(), dims=(5, 2))], ids=str)
def test_tiles_on_threads_give_the_gradients_of_one_thread_every_time(threads, form, ids, monkeypatch):
    monkeypatch.setattr(tiles, "PIECE_ROWS", 16)
    x, y = batch(rows=97)
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (6.0, -2.0))
    keywords = {"scale": scale, "bias": bias, "exclude": ids, "tile": 16}
    inputs = [x, y, scale, *([bias] if form.base.sigmoid else [])]
    found = []
    for count in (1, 3, 3, 3):
        threads(count)
        loss = form(x, y, **keywords)
        found.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    for one, *others in zip(*found, strict=True):
        torch.testing.assert_close(others[0], one, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(other, others[0]) for other in others)


def test_metrics_on_threads_are_those_of_one_thread(threads, monkeypatch):
    monkeypatch.setattr(ranking, "PIECE_IMAGES", 16)
    monkeypatch.setattr(ranking, "PIECE_TEXTS", 64)
    monkeypatch.setattr(ranking, "PIECE_SCORES", 3000)
    monkeypatch.setattr(ranking, "TILE_SCORES", 9000)
    generator = torch.Generator().manual_seed(0)
    image_ND, image_M = torch.randn(90, 8, generator=generator), torch.arange(90).repeat_interleave(4)
    text_MD = image_ND[image_M].round() + torch.randn(360, 8, generator=generator).round()  # some are equal
    captions = [torch.nonzero(image_M == image)[:, 0].tolist() for image in range(90)]
    found = []
    for count in (1, 3):
        threads(count)
        both = image_text_retrieval(image_ND, text_MD, image_M)
        found.append((both.metrics, both.intervals, retrieval_metrics(image_ND, text_MD, captions).metrics))
    assert found[0] == found[1]
    assert found[0][0]["i2t/R@5"] == found[0][2]["R@5"]
