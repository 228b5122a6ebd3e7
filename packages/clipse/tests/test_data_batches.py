"""Topical batches: every row once, ranks disjoint, resume in mid-epoch, edges; and a run that is killed among them."""

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
import torch
from helpers.runs import kill_when, same
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.config import load_config
from clip_common.runs import Run
from clip_common.training import ResumableLoader, ShuffledBatchSampler
from clipse import Config, TopicalBatchSampler, train
from clipse.data import find_topics

PROPERTY = settings(deadline=None)  # a machine that pauses is no error


@st.composite
def samplers(draw):
    """Labels and options of a sampler that gives at least one batch."""
    world, batch_size = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    n = draw(st.integers(world * batch_size, 120))
    clusters = draw(st.integers(1, 12))
    labels = torch.tensor(draw(st.lists(st.integers(0, clusters - 1), min_size=n, max_size=n)))
    fraction = draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]))
    options = {"batch_size": batch_size, "fraction": fraction, "seed": draw(st.integers(0, 3)), "world": world}
    return labels, options | {"drop_last": draw(st.booleans())}


def epoch_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


@PROPERTY
@given(samplers(), st.integers(0, 5))
def test_each_epoch_holds_every_row_once_and_ranks_are_disjoint_and_in_step(made, epoch):
    labels, options = made
    n, world, size = len(labels), options["world"], options["batch_size"] * options["world"]
    ranks = [epoch_of(TopicalBatchSampler(labels, rank=rank, **options), epoch) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(TopicalBatchSampler(labels, rank=0, **options)) == len(batches) for batches in ranks)
    seen = Counter(row for batches in ranks for batch in batches for row in batch)
    assert set(seen.values()) == {1}
    assert set(seen) <= set(range(n))
    assert n - len(seen) == (n % size if options["drop_last"] else n % world)
    if options["drop_last"]:
        assert all(len(batch) == options["batch_size"] for batches in ranks for batch in batches)


@PROPERTY
@given(samplers())
def test_ranks_together_give_the_batches_of_one_rank(made):
    labels, options = made
    options["drop_last"] = True
    world, size = options["world"], options["batch_size"]
    alone = epoch_of(TopicalBatchSampler(labels, **(options | {"world": 1, "batch_size": size * world})))
    ranks = [epoch_of(TopicalBatchSampler(labels, rank=rank, **options)) for rank in range(world)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert parts == [batch[rank::world] for rank in range(world)]


@PROPERTY
@given(samplers(), st.integers(0, 3), st.data())
def test_resume_in_mid_epoch_equals_no_interruption(made, epoch, data):
    labels, options = made
    whole = epoch_of(TopicalBatchSampler(labels, **options), epoch)
    first = TopicalBatchSampler(labels, **options)
    first.set_epoch(epoch)
    iterator = iter(first)
    before = [next(iterator) for _ in range(data.draw(st.integers(1, len(whole))))]
    second = TopicalBatchSampler(labels, **options)
    second.load_state_dict(first.state_dict())
    assert before + list(second) == whole


@PROPERTY
@given(samplers())
def test_each_batch_holds_its_share_of_one_topic_where_topics_are_wide_enough(made):
    labels, options = made
    share = round(options["fraction"] * options["batch_size"])
    labels = torch.arange(len(labels)) % 2  # two topics, each as wide as any share can be
    options |= {"world": 1, "drop_last": True}
    batches = epoch_of(TopicalBatchSampler(labels, **options))
    wide = [batch for batch in batches if max(Counter(labels[batch].tolist()).values()) >= share]
    one, other = labels.bincount(minlength=2).tolist()
    left_out = len(labels) - sum(map(len, batches))  # of either topic
    pieces = [(one - lost) // share + (other - left_out + lost) // share for lost in range(left_out + 1) if share]
    assert len(wide) >= min([len(batches), *pieces])


def test_the_share_by_hand():
    labels = torch.tensor([0] * 8 + [1] * 8)
    for batch in epoch_of(TopicalBatchSampler(labels, batch_size=4, fraction=0.75)):
        assert max(Counter(labels[batch].tolist()).values()) >= 3


def test_a_share_wider_than_its_topic_takes_it_whole_and_is_filled_up():
    labels = torch.arange(24) // 3  # eight topics of three rows
    for epoch in range(5):
        for batch in epoch_of(TopicalBatchSampler(labels, batch_size=8, fraction=0.75), epoch):
            assert len(batch) == 8
            assert max(Counter(labels[batch].tolist()).values()) == 3


def test_a_whole_batch_of_one_topic_and_a_short_one_filled_up():
    labels = torch.tensor([0] * 8 + [1] * 8 + [2] * 4)
    batches = epoch_of(TopicalBatchSampler(labels, batch_size=4, fraction=1.0))
    assert all(len(set(labels[batch].tolist())) == 1 for batch in batches)
    labels = torch.tensor([0] * 6 + [1] * 6)  # pieces of 4, 2, 4, 2
    batches = epoch_of(TopicalBatchSampler(labels, batch_size=4, fraction=1.0))
    assert sorted(max(Counter(labels[batch].tolist()).values()) for batch in batches) == [2, 4, 4]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_no_share_gives_the_plain_shuffled_batches(drop_last, rank):
    labels = torch.arange(50) % 4
    options = {"batch_size": 4, "seed": 3, "drop_last": drop_last, "rank": rank, "world": 2}
    plain = ShuffledBatchSampler(50, **options)
    assert epoch_of(TopicalBatchSampler(labels, fraction=0.0, **options), 2) == epoch_of(plain, 2)


def test_one_topic_is_plain_shuffling_in_distribution():
    sampler = TopicalBatchSampler(torch.zeros(12, dtype=torch.long), batch_size=3, fraction=0.67)
    together = sum({0, 1} <= set(batch) for epoch in range(2000) for batch in epoch_of(sampler, epoch))
    assert together / 2000 == pytest.approx(2 / 11, abs=0.03)  # a row meets each of 11 others in 2 of its places


def test_rows_of_every_topic_are_left_out_alike():
    labels = torch.tensor([0] * 20 + [1] * 5)
    sampler = TopicalBatchSampler(labels, batch_size=10, fraction=1.0)
    seen = Counter(row for epoch in range(500) for batch in epoch_of(sampler, epoch) for row in batch)
    assert min(seen.values()) / 500 == pytest.approx(0.8, abs=0.08)  # 20 of 25 rows an epoch


def test_a_share_stays_with_its_topic_more_than_by_chance():
    labels = torch.arange(1000) % 20

    def alike(fraction):
        batches = epoch_of(TopicalBatchSampler(labels, batch_size=50, fraction=fraction))
        return sum((labels[batch][:, None] == labels[batch]).float().mean().item() for batch in batches) / len(batches)

    assert alike(0.0) < 0.08
    assert alike(0.5) > 0.25


def test_a_loader_resumes_among_topical_batches():
    def loader():
        sampler = TopicalBatchSampler(torch.arange(40) % 5, batch_size=4, fraction=0.5)
        return ResumableLoader(range(40), batch_sampler=sampler, collate_fn=list)

    whole, first, second = loader(), loader(), loader()
    for each in (whole, first):
        each.set_epoch(4)
    expected = list(whole)
    iterator = iter(first)
    before = [next(iterator) for _ in range(3)]
    second.load_state_dict(first.state_dict())
    assert before + list(second) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TopicalBatchSampler(torch.zeros(3), batch_size=4, fraction=0.5), "3 rows do not fill a batch of 4"),
        (lambda: TopicalBatchSampler(torch.zeros(8), batch_size=4, fraction=1.5), "fraction=1.5: expected a share"),
        (
            lambda: TopicalBatchSampler(torch.zeros(8), batch_size=4, fraction=0.5).set_topics(torch.zeros(9)),
            "topics of 9 rows for a set of 8",
        ),
        (
            lambda: find_topics(torch.ones(3, 2), clusters=4),
            "clusters=4 is more than the 3 training images: set .* most 3",
        ),
        (lambda: find_topics(torch.full((3, 2), torch.nan), clusters=2), "NaN or infinity"),
        (
            lambda: load_config(Config, overrides=["data.topical.fraction=1.2"]),
            "fraction: expected a share from 0 to 1, got 1.2",
        ),
        (
            lambda: load_config(Config, overrides=["data.topical.clusters=0"]),
            "clusters: expected a whole number from 1, got 0",
        ),
    ],
)
def test_bad_input_says_what_was_given_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@settings(PROPERTY, max_examples=10)
@given(st.integers(0, 1000))
def test_topics_are_the_directions_that_features_were_drawn_around(seed):
    generator = torch.Generator().manual_seed(seed)
    truth_N = torch.arange(60) % 3
    features_ND = torch.eye(8)[truth_N] + 0.05 * torch.randn(60, 8, generator=generator)
    features_ND *= 1 + torch.rand(60, 1, generator=generator)  # length says nothing
    found_N = find_topics(features_ND, clusters=3, seed=seed)
    assert ((found_N[:, None] == found_N) == (truth_N[:, None] == truth_N)).all()
    assert torch.equal(found_N, find_topics(features_ND, clusters=3, seed=seed))


TOPICAL = ["data.topical.fraction=0.5", "data.topical.clusters=6", "data.topical.every=2", "data.batch_size=8"]


def weights(run):
    """The last weights: the best ones may be older than what is looked at."""
    return torch.load(run / "checkpoints" / "fit" / "last.ckpt", weights_only=True)["state_dict"]


def test_each_knob_changes_the_weights_that_come_out(trained):
    epochs = "trainer.max_epochs=3"
    chosen = [["data.batch_size=8"], TOPICAL[:2] + TOPICAL[3:], TOPICAL]
    chosen.append(["data.topical.fraction=0.5", "data.topical.clusters=3", "data.batch_size=8"])
    made = [weights(trained(epochs, *overrides)) for overrides in chosen]
    assert not any(same(one, other) for one, other in [*pairwise(made), (made[1], made[3])])


def test_topics_of_a_locked_text_tower_come_from_its_rows(trained):
    lock = "model.lock_text=true"
    assert not same(weights(trained(lock, "data.batch_size=8")), weights(trained(lock, *TOPICAL)))


def test_fewer_images_than_topics_is_refused_before_anything_is_written(small, tmp_path):
    overrides = [*small, "data.topical.fraction=0.5", "name=refused"]
    with pytest.raises(ValueError, match=r"data.topical.clusters=100 is more than the 48 training images"):
        train(load_config(Config, overrides=overrides, package="clipse"))
    assert not (tmp_path / "runs" / "clipse" / "refused").exists()


SCRIPT = """
import sys
from pathlib import Path
from functools import partial
from clip_common.runs.resolve import resolve as resolve_run
from clipse.config import Config
from clipse.training.experiment import train
resolve = partial(resolve_run, Config, package="clipse")
resume = Path(sys.argv[2]) if sys.argv[1] == "resume" else None
train(resolve(resume=resume) if resume else resolve(overrides=sys.argv[2:]), resume=resume)
"""


def start(*arguments):
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_killed_in_an_epoch_after_topics_were_found_again_and_resumed_equals_uninterrupted(small, tmp_path):
    extra = [
        *TOPICAL,
        "trainer.max_epochs=4",
        "trainer.checkpoint_every=1",
    ]  # six steps an epoch, new topics at step 12
    whole = train(load_config(Config, overrides=[*small, *extra, "name=whole"], package="clipse")).run.path

    last = tmp_path / "runs" / "clipse" / "killed" / "checkpoints" / "fit" / "last.ckpt"
    wanted = 13 + os.urandom(1)[0] % 4  # inside the third epoch

    def reached() -> bool:
        try:
            return torch.load(last, weights_only=True)["global_step"] >= wanted
        except (OSError, RuntimeError, EOFError):  # not written yet
            return False

    kill_when(reached, [sys.executable, "-c", SCRIPT, "fresh", *small, *extra, "name=killed"])
    killed = last.parents[2]
    assert not (killed / "model").exists(), "it had finished before it was killed"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] >= 13
    assert saved["RetrievalData"]["topics"].shape == (48,)

    resumed = start("resume", killed)
    _, error = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, error
    assert same(weights(whole), weights(killed))


@pytest.mark.parametrize("step", [3, 6, 12, 14, 18])
def test_stopped_at_a_step_and_resumed_equals_uninterrupted(small, tmp_path, monkeypatch, step):
    """The same at stated steps, boundaries of epochs and of topics included, by an error in place of a kill."""
    from clipse.training.modules import RetrievalModule

    extra = [*TOPICAL, "trainer.max_epochs=4", "trainer.checkpoint_every=1"]
    config = load_config(Config, overrides=[*small, *extra, "name=stopped"], package="clipse")
    whole = train(load_config(Config, overrides=[*small, *extra, "name=whole"], package="clipse")).run.path
    original = RetrievalModule.training_step

    def stop(self, batch, batch_idx):
        if self.global_step == step:
            raise RuntimeError("stopped here")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalModule, "training_step", stop)
        with pytest.raises(RuntimeError, match="stopped here"):
            train(config)
    stopped = train(config, resume=tmp_path / "runs" / "clipse" / "stopped").run.path
    assert same(weights(whole), weights(stopped))


@pytest.mark.slow
def test_two_ranks_train_on_the_batches_of_one(small, tmp_path):
    extra = [*TOPICAL, "trainer.max_epochs=3", "optim.lr=1e-4"]
    one = train(load_config(Config, overrides=[*small, *extra, "name=one"], package="clipse")).run
    script = tmp_path / "script.py"  # a file: Lightning starts the second rank by the same command
    script.write_text(SCRIPT, encoding="utf-8")
    options = [*small, *extra, "name=two", "trainer.devices=cpu:2", "trainer.strategy=ddp"]
    two = subprocess.run([sys.executable, script, "fresh", *options], capture_output=True, text=True, timeout=300)
    assert two.returncode == 0, two.stderr
    found = Run.open(tmp_path / "runs" / "clipse" / "two")
    first, second = (
        torch.tensor([float(row["train/loss"]) for row in run.metrics.rows() if row["train/loss"]])
        for run in (one, found)
    )
    torch.testing.assert_close(second, first, atol=1e-4, rtol=0)
