"""The losses of alignment: one pass over widths, pairs by hand, negatives from the corpus, several processes."""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

from edgeglass.training.losses import AlignmentLoss, Columns, CorpusAlignmentLoss, TriModalAlignmentLoss

NAMES = ("image", "text", "audio")
PAIRS = {("image", "text"): 1.0, ("audio", "text"): 1.0, ("image", "audio"): 0.5}


def rows_of(count: int = 7, *, width: int = 8, seed: int = 0, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, width, generator=random, dtype=torch.float64)
    noise = {name: torch.randn(count, width, generator=random, dtype=torch.float64) for name in names}
    return {name: (shared + part).requires_grad_() for name, part in noise.items()}


def info_nce(x: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
    z, labels = normalize(x, dim=1) @ normalize(y, dim=1).T / temperature, torch.arange(len(x))
    return (cross_entropy(z, labels) + cross_entropy(z.T, labels)) / 2


def same(ours: Tensor, theirs: Tensor, rows: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    """Equal, with equal gradients."""
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    found, expected = (torch.autograd.grad(loss, list(rows.values()), retain_graph=True) for loss in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_one_pass_is_the_weighted_sum_of_a_loss_for_each_pair_and_width():
    rows = rows_of()
    loss = TriModalAlignmentLoss(dims=(6, 3, 1), clip=0.7, mrl=1.3)
    theirs = 0
    for (first, second), weight in PAIRS.items():
        x, y = rows[first], rows[second]
        nested = sum(info_nce(x[:, :dim], y[:, :dim]) for dim in (6, 3, 1))
        theirs = theirs + weight * (0.7 * info_nce(x, y) + 1.3 * nested)
    same(loss(rows).loss, theirs, rows)


def test_two_pairs_by_hand():
    # cosines [[1, 0], [0.6, 0.8]] at a temperature of 0.5: z = [[2, 0], [1.2, 1.6]]
    image, text = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    output = AlignmentLoss(dims=(), temperature=0.5)({"image": image, "text": text})
    each = [math.log1p(math.exp(gap)) for gap in (-2.0, 1.2 - 1.6, 1.2 - 2.0, -1.6)]
    assert output.loss.item() == pytest.approx(sum(each) / 4, abs=1e-6)
    assert list(output.losses) == ["image-text"]


def test_equal_captions_share_their_targets_in_pairs_with_texts_alone():
    rows, captions = rows_of(), torch.tensor([0, 1, 0, 2, 3, 1, 4])
    output = TriModalAlignmentLoss(dims=())(rows, captions=captions)
    target = (captions[:, None] == captions).double()
    target /= target.sum(dim=1, keepdim=True)

    def one_way(x: Tensor, y: Tensor) -> Tensor:
        z = normalize(x, dim=1) @ normalize(y, dim=1).T / 0.07
        return -(target * log_softmax(z, dim=1)).sum(dim=1).mean()

    for name in ("image", "audio"):
        theirs = (one_way(rows[name], rows["text"]) + one_way(rows["text"], rows[name])) / 2
        same(output.losses[f"{name}-text"], theirs, {name: rows[name], "text": rows["text"]})
    pair = {"image": rows["image"], "audio": rows["audio"]}
    same(output.losses["image-audio"], info_nce(rows["image"], rows["audio"]), pair)


def test_samples_of_one_group_are_no_negatives_of_each_other():
    rows, groups = rows_of(names=("image", "text")), torch.tensor([0, 0, 1, 2, 2, 2, 3])
    z = normalize(rows["image"], dim=1) @ normalize(rows["text"], dim=1).T / 0.07
    z = z.masked_fill((groups[:, None] == groups) & ~torch.eye(7, dtype=torch.bool), -torch.inf)
    labels = torch.arange(7)
    theirs = (cross_entropy(z, labels) + cross_entropy(z.T, labels)) / 2
    same(AlignmentLoss(dims=())(rows, groups=groups).loss, theirs, rows)


def test_a_pair_with_a_fusion_has_a_temperature_of_its_own():
    rows = rows_of(names=("image+audio", "text"))
    loss = AlignmentLoss(dims=(), pairs={("image+audio", "text"): 2.0})
    same(loss(rows).loss, 2 * info_nce(*rows.values()), rows)
    assert {name: round(scale.item(), 3) for name, scale in loss.scale_of_pairs().items()} == {
        "image+audio-text": 14.286
    }


@pytest.mark.parametrize("given", [("image",), ("image", "audio"), NAMES], ids="+".join)
def test_a_batch_without_any_pair_has_loss_0_and_gradients_of_zero(given):
    rows = rows_of(3, names=given)
    pairs = {pair: weight for pair, weight in PAIRS.items() if "text" in pair}
    present = {name: torch.arange(3) == number for number, name in enumerate(given)}
    loss = AlignmentLoss(dims=(4,), pairs=pairs)
    output = loss(rows, present=present)
    assert (output.loss.item(), output.losses) == (0.0, {})
    output.loss.backward()
    assert all((parameter.grad == 0).all() for parameter in [*rows.values(), *loss.parameters()])


def test_temperatures_learn_within_limits_or_stay_fixed():
    learned, fixed = AlignmentLoss(), AlignmentLoss(temperature=0.005)
    assert [len(list(one.parameters())) for one in (learned, fixed)] == [1, 0]
    with torch.no_grad():
        learned.scales["image-text"].logit_scale.fill_(9.0)
    for loss in (learned, fixed):
        loss.clamp_temperatures()
    assert learned.scale_of_pairs()["image-text"].item() == pytest.approx(100.0)
    assert fixed.scale_of_pairs()["image-text"].item() == pytest.approx(200.0)


def test_drawn_widths_keep_the_expectation():
    rows = rows_of(names=("image", "text"))
    whole = AlignmentLoss(dims=(4, 2))(rows).loss.item()
    torch.manual_seed(0)
    drawn = [AlignmentLoss(dims=(4, 2), dims_per_step=1)(rows).loss.item() for _ in range(200)]
    assert len({round(value, 9) for value in drawn}) == 2
    assert sum(drawn) / 200 == pytest.approx(whole, rel=0.1)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs is empty"):
        AlignmentLoss(pairs={})


@given(st.integers(1, 6), st.integers(0, 999))
def test_any_presence_is_finite_and_the_order_of_samples_does_not_matter(count, seed):
    rows, random = rows_of(count, seed=seed), torch.Generator().manual_seed(seed)
    present = {name: torch.rand(count, generator=random) < 0.6 for name in NAMES}
    captions, groups = (torch.randint(0, 3, (count,), generator=random) for _ in range(2))
    loss = TriModalAlignmentLoss(dims=(4, 2))
    output = loss(rows, present=present, captions=captions, groups=groups)
    gradients = torch.autograd.grad(output.loss, list(rows.values()))
    assert all(torch.isfinite(part).all() for part in (output.loss, *gradients))
    for (name, mask), gradient in zip(present.items(), gradients, strict=True):
        assert (gradient[~mask] == 0).all(), name
    order = torch.randperm(count, generator=random)
    turned = loss(
        {name: part[order] for name, part in rows.items()},
        present={name: mask[order] for name, mask in present.items()},
        captions=captions[order],
        groups=groups[order],
    )
    torch.testing.assert_close(turned.loss, output.loss)


# Negatives from the corpus


def columns_of(rows: dict[str, Tensor], captions: Tensor, groups: Tensor) -> dict[str, Columns]:
    """Fresh columns of a training set whose samples have one caption each."""
    samples = torch.arange(len(captions))
    return {name: Columns(part, captions, groups, samples) for name, part in rows.items()}


CAPTIONS, GROUPS = torch.tensor([0, 1, 0, 2, 3, 1, 4, 5, 6]), torch.tensor([0, 1, 2, 3, 3, 4, 5, 6, 7])


def against(loss: CorpusAlignmentLoss, rows: dict[str, Tensor], chosen: Tensor) -> Tensor:
    return loss.against(
        {name: part[chosen] for name, part in rows.items()},
        columns_of(rows, CAPTIONS, GROUPS),
        present={},
        captions=CAPTIONS[chosen],
        groups=GROUPS[chosen],
        samples=chosen,
    ).loss


@pytest.mark.parametrize("temperature", [None, 0.2])
@pytest.mark.parametrize("full_only", [False, True])
def test_a_batch_that_is_the_corpus_has_the_loss_of_the_batch(full_only, temperature):
    rows = rows_of(9)
    loss = CorpusAlignmentLoss(
        full_only=full_only, dims=(4, 2), pairs=PAIRS, clip=0.5, mrl=2.0, temperature=temperature
    )
    theirs = AlignmentLoss(dims=(4, 2), pairs=PAIRS, clip=0.5, mrl=2.0, temperature=temperature)
    expected = theirs(rows, captions=CAPTIONS, groups=GROUPS)
    ours = loss.against(
        rows,
        columns_of(rows, CAPTIONS, GROUPS),
        present={},
        captions=CAPTIONS,
        groups=GROUPS,
        samples=torch.arange(9),
    )
    same(ours.loss, expected.loss, rows)
    torch.testing.assert_close(ours.losses, expected.losses)
    # and called like AlignmentLoss, as in validation, it is that loss
    same(loss(rows, captions=CAPTIONS, groups=GROUPS).loss, expected.loss, rows)


def test_the_mean_over_batches_is_the_loss_of_the_whole_set():
    rows = rows_of(9)
    loss = CorpusAlignmentLoss(dims=(4, 2), pairs=PAIRS)
    parts = [against(loss, rows, chosen) for chosen in torch.randperm(9).split(3)]
    same(sum(parts) / 3, AlignmentLoss(dims=(4, 2), pairs=PAIRS)(rows, captions=CAPTIONS, groups=GROUPS).loss, rows)


def test_full_only_takes_narrow_widths_from_the_batch():
    rows, chosen = rows_of(9, names=("image", "text")), torch.tensor([1, 4, 7])
    loss = CorpusAlignmentLoss(full_only=True, dims=(4,))
    batch = {name: part[chosen] for name, part in rows.items()}
    wide = against(CorpusAlignmentLoss(dims=()), rows, chosen)
    narrow = AlignmentLoss(dims=(4,), clip=0.0)(batch, captions=CAPTIONS[chosen], groups=GROUPS[chosen]).loss
    same(against(loss, rows, chosen), wide + narrow, rows)


def test_several_captions_a_sample_by_hand():
    """Images 0 and 1; captions 0 and 1 are of image 0, 2 of image 1. The batch shows image 0 with caption 1."""
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    columns = {
        "image": Columns(image, torch.tensor([1, 2]), torch.tensor([0, 1]), torch.tensor([0, 1])),
        "text": Columns(text, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])),
    }
    output = CorpusAlignmentLoss(dims=(), temperature=0.5).against(
        {"image": image[:1], "text": text[1:2]},
        columns,
        present={},
        captions=torch.tensor([1]),
        groups=torch.tensor([0]),
        samples=torch.tensor([0]),
    )
    # image 0: positive 0.6, negative 0 (caption 0 is its own, so neither); caption 1: positive 0.6, negative 0.8
    expected = (math.log1p(math.exp((0 - 0.6) / 0.5)) + math.log1p(math.exp((0.8 - 0.6) / 0.5))) / 2
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)


def test_absent_rows_are_left_out_and_every_parameter_has_a_gradient():
    rows, chosen = rows_of(9), torch.tensor([0, 3, 5])
    loss = CorpusAlignmentLoss(dims=(4,), pairs=PAIRS)
    columns = columns_of({name: part.detach() for name, part in rows.items()}, CAPTIONS, GROUPS)
    batch = {name: part[chosen] for name, part in rows.items()}
    labels = {"captions": CAPTIONS[chosen], "groups": GROUPS[chosen], "samples": chosen}
    here = torch.tensor([True, False, True])
    output = loss.against(batch, columns, present={"audio": here}, **labels)
    kept = loss.against(
        {name: part[here] for name, part in batch.items()},
        columns,
        present={},
        **{name: part[here] for name, part in labels.items()},
    )
    torch.testing.assert_close(output.losses["audio-text"], kept.losses["audio-text"])
    torch.testing.assert_close(output.losses["image-audio"], kept.losses["image-audio"])
    nothing = loss.against(
        {"image": batch["image"]}, columns, present={"image": torch.zeros(3, dtype=torch.bool)}, **labels
    )
    assert nothing.loss.item() == 0
    nothing.loss.backward()
    assert all(scale.logit_scale.grad == 0 for scale in loss.scales.values())
    assert (rows["image"].grad == 0).all()


RANKS = """
import os
import sys
import torch
from torch import distributed as dist
from edgeglass.training.losses import Columns, CorpusAlignmentLoss

rank, sizes, absent = int(sys.argv[1]), eval(sys.argv[3]), sys.argv[4]
total = sum(sizes)
random = torch.Generator().manual_seed(0)
pairs = {("image", "text"): 1.0, ("audio", "text"): 1.0, ("image", "audio"): 0.5}
rows = {name: torch.randn(total, 6, generator=random, dtype=torch.float64) for name in ("image", "text", "audio")}
captions, groups = torch.arange(total) // 2, torch.arange(total) // 3
has_audio = torch.arange(total) < (sizes[0] - 1 if absent == "absent" else total - 1)  # at most rank 0 has sounds

def run(mine, whole):
    found = []
    for corpus, full_only in ((False, False), (True, False), (True, True)):
        loss = CorpusAlignmentLoss(full_only=full_only, dims=(4, 2), pairs=pairs).double()
        W = torch.eye(6, dtype=torch.float64).requires_grad_()
        given = {name: part[mine] @ W for name, part in rows.items()}
        present = {"audio": has_audio[mine]}
        if absent == "absent" and not whole and rank == 1:
            given, present = {name: part for name, part in given.items() if name != "audio"}, {}
        labels = {"captions": captions[mine], "groups": groups[mine]}
        if corpus:
            every = {name: has_audio if name == "audio" else torch.ones_like(has_audio) for name in rows}
            index = torch.arange(total)
            columns = {
                name: Columns((part @ W)[every[name]], *(ids[every[name]] for ids in (captions, groups, index)))
                for name, part in rows.items()
            }
            loss_of = loss.against(given, columns, present=present, samples=index[mine], **labels).loss
        else:
            loss_of = loss(given, present=present, **labels).loss
        loss_of.backward()  # as DDP does: grad(loss, W) would skip gathers that W has no part in, which others wait for
        found += [loss_of.detach(), W.grad, *(scale.logit_scale.grad for scale in loss.scales.values())]
    return found

alone = run(slice(0, total), True)
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
for found, expected in zip(run(slice(sum(sizes[:rank]), sum(sizes[: rank + 1])), False), alone):
    dist.all_reduce(found)
    torch.testing.assert_close(found / 2, expected, atol=1e-9, rtol=1e-9)
dist.barrier()
os._exit(0)  # gloo's threads abort the process now and then if the interpreter ends beside them
"""


@pytest.mark.parametrize("absent", ["present", "absent"])
@pytest.mark.parametrize("sizes", [[6, 6], [7, 4]], ids=["even", "uneven"])
def test_two_processes_are_one_with_negatives_of_the_batch_and_of_the_corpus(sizes, absent):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    commands = [[sys.executable, "-c", RANKS, str(rank), address, repr(sizes), absent] for rank in range(2)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            _, error = process.communicate(timeout=200)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()
