"""The loss of a batch against a corpus: whole = batch, parts average to it, several processes are one."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy_losses import SCALE, TILES, batch, logits, same

from clip_common.losses import Decoupled, Guided, InfoNCE, LogitScale, Matryoshka, SigLIP, contrastive_loss, corpus_loss

IDS = torch.arange(17)
FORMS = [InfoNCE(), Decoupled(), Matryoshka(dims=(4, 2), full=0.5, nested=2.0)]


def against(x: Tensor, y: Tensor, rows: Tensor, *, ids: Tensor, exclude: Tensor | None = None, **keywords) -> Tensor:
    """Both ways: some rows of x and of y against all of the other side."""
    sides = [
        corpus_loss(
            one[rows],
            other,
            scale=SCALE,
            positive=(ids[rows], ids),
            exclude=None if exclude is None else (exclude[rows], exclude),
            **keywords,
        )
        for one, other in ((x, y), (y, x))
    ]
    return (sides[0] + sides[1]) / 2


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("ids", [IDS, IDS % 5], ids=["one positive", "several"])
@pytest.mark.parametrize("exclude", [None, IDS // 3], ids=["all", "groups"])
def test_a_batch_that_is_the_corpus_gives_the_contrastive_loss(form, ids, exclude, tile):
    x, y = batch()
    theirs = contrastive_loss(x, y, scale=SCALE, form=form, positive=ids, exclude=exclude)
    same(against(x, y, IDS, ids=ids, exclude=exclude, form=form, tile=tile), theirs, x, y)


@given(st.integers(2, 20), st.integers(1, 5), st.integers(0, 99), st.sampled_from(FORMS))
def test_the_mean_over_parts_is_the_whole(rows, parts, seed, form):
    x, y = batch(rows, seed=seed)
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, rows, (rows,), generator=random)
    theirs = contrastive_loss(x, y, scale=SCALE, form=form, positive=ids)
    chunks = torch.randperm(rows, generator=random).chunk(parts)
    ours = sum(against(x, y, chunk, ids=ids, form=form) * len(chunk) / rows for chunk in chunks)
    same(ours, theirs, x, y)


def test_one_row_against_three_columns_by_hand():
    # cosines 1, 0 and -1; columns 0 and 1 are positives: -mean(z) + log(e^z0 + e^z1 + e^z2)
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    loss = corpus_loss(x, y, scale=2.0, positive=(torch.tensor([7]), torch.tensor([7, 7, 8])))
    z = torch.tensor([2.0, 0.0, -2.0])
    torch.testing.assert_close(loss, z.logsumexp(0) - 1.0)
    # column 2 is of the row's own group: no negative
    groups = torch.tensor([4]), torch.tensor([1, 2, 4])
    loss = corpus_loss(x, y, scale=2.0, positive=(torch.tensor([7]), torch.tensor([7, 7, 8])), exclude=groups)
    torch.testing.assert_close(loss, z[:2].logsumexp(0) - 1.0)


def test_rows_without_a_positive_are_skipped_and_none_at_all_is_zero():
    x, y = batch()
    ids = torch.where(IDS % 2 == 0, IDS, -1)
    z = logits(x, y)
    theirs = (z.logsumexp(1) - z.diag())[::2].mean()
    same(corpus_loss(x, y, scale=SCALE, positive=(ids, IDS)), theirs, x, y)
    for rows in (x[:0], x):
        nothing = corpus_loss(rows, y, scale=SCALE, positive=(torch.full((len(rows),), -1), IDS))
        assert nothing.item() == 0
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(nothing, (x, y)))


def test_columns_may_be_stale_or_narrow_and_the_scale_may_learn():
    x, y = batch(dtype=torch.float32)
    scale = LogitScale()
    loss = corpus_loss(x.bfloat16(), y.detach().bfloat16(), scale=scale(), positive=(IDS, IDS))
    loss.backward()
    assert (y.grad, loss.dtype) == (None, torch.float32)
    assert x.grad.abs().max() > 0
    assert scale.logit_scale.grad != 0


def test_under_autocast_it_is_computed_in_float32():
    x, y = batch(dtype=torch.float32)
    exact = corpus_loss(x, y, scale=SCALE, positive=(IDS, IDS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(corpus_loss(x, y, scale=SCALE, positive=(IDS, IDS)), exact)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x, y: corpus_loss(x, y, scale=1.0, positive=(IDS, IDS), form=SigLIP()), "SigLIP compares pairs both"),
        (lambda x, y: corpus_loss(x, y, scale=1.0, positive=(IDS, IDS), form=Guided()), "Guided compares pairs both"),
        (lambda x, y: corpus_loss(x, y, scale=1.0, positive=(IDS[:3], IDS)), r"positive .* ids \(3,\) and \(17,\)"),
        (lambda x, y: corpus_loss(x[:, :2], y, scale=1.0, positive=(IDS, IDS)), "one width D"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call(*batch())
    assert "\n" not in str(error.value)


RANKS = """
import os
import sys
import torch
from torch import distributed as dist
from clip_common.losses import InfoNCE, Matryoshka, corpus_loss

rank, sizes = int(sys.argv[1]), eval(sys.argv[3])
random = torch.Generator().manual_seed(0)
x, y = (torch.randn(sum(sizes), 6, generator=random, dtype=torch.float64) for _ in range(2))
corpus = torch.cat([y, torch.randn(5, 6, generator=random, dtype=torch.float64)])
ids = torch.arange(sum(sizes)) // 2
ids[1] = -9  # no positive
columns = torch.cat([torch.arange(sum(sizes)) // 2, torch.arange(5) + 100])

def run(rows):
    W = torch.eye(6, dtype=torch.float64).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    found = []
    for form in (InfoNCE(), Matryoshka(dims=(4, 2))):
        loss = corpus_loss(x[rows] @ W, corpus @ W, scale=scale, positive=(ids[rows], columns), form=form)
        found += [loss.detach(), *torch.autograd.grad(loss, (W, scale))]
    return found

alone = run(slice(None))
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=len(sizes))
for found, expected in zip(run(slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))), alone):
    dist.all_reduce(found)
    torch.testing.assert_close(found / len(sizes), expected, atol=1e-9, rtol=1e-9)
dist.barrier()
os._exit(0)  # gloo's threads abort the process now and then if the interpreter ends beside them
"""


@pytest.mark.parametrize("sizes", [[6, 6], [7, 4], [5, 0]], ids=str)
def test_two_processes_average_to_one(sizes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    commands = [[sys.executable, "-c", RANKS, str(rank), address, repr(sizes)] for rank in range(2)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            _, error = process.communicate(timeout=200)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()
