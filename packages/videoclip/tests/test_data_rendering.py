"""`videoclip data render-maps`: the files hold the maps that are drawn on the fly, and training is the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_common.config import load_config
from clip_common.errors import DataError
from clip_common.video import write_video
from videoclip import Config, train
from videoclip.config import DataConfig
from videoclip.data import read_map
from videoclip.data.manifest import read_manifest, write_manifest
from videoclip.data.rendering import render


@pytest.mark.parametrize("maps", ["doctor1", "doctor2", "both"])
def test_the_files_are_the_maps_that_are_drawn(walks, tmp_path, maps):
    at = []
    manifest, drawn, without = render(
        walks, tmp_path / "out", maps=maps, size=32, progress=lambda done, total: at.append((done, total))
    )
    assert (drawn, without, at[-1]) == (30, [], (30, 30))
    first = np.load(tmp_path / "out" / "maps" / "00001.npy")
    assert (first.shape, first.dtype) == ((8, 32, 32), np.float16)
    before = {record.clip_id: record for record in read_manifest(walks / "manifest.csv")}
    for record in read_manifest(manifest)[::5]:
        assert (record.subject_id, record.label, record.fold) == (
            before[record.clip_id].subject_id,
            before[record.clip_id].label,
            before[record.clip_id].fold,
        )
        file, fly = (
            read_map(one, DataConfig(frames=8, maps=kind), channels=1, side=32).int()
            for one, kind in ((record, "file"), (before[record.clip_id], maps))
        )
        assert torch.equal(file, fly)


def test_training_on_the_files_is_training_on_maps_drawn_on_the_fly(small, walks, tmp_path):
    manifest, _, _ = render(walks, tmp_path / "out", maps="doctor2", size=32)
    losses = []
    for name, maps, root in (("fly", "doctor2", walks), ("file", "file", manifest), ("other", "doctor1", walks)):
        overrides = [*small, f"name={name}", f"data.maps={maps}", f"data.root={root}", "model.map_guided=true"]
        run = train(load_config(Config, overrides=[*overrides, "data.frames=8"])).run
        losses.append([float(row["train/loss"]) for row in run.metrics.rows() if row["train/loss"]])
    assert losses[0] == losses[1]  # of a size, nothing is lost: float16 holds the 256 values
    assert losses[0] != losses[2]


def test_a_clip_within_a_longer_video_gets_the_map_of_its_own_seconds(walks, tmp_path):
    records = read_manifest(walks / "manifest.csv")
    joints = np.zeros((24, 17, 3), np.float32)
    joints[:, :, 2] = 1
    joints[:, :, 0] = np.arange(24)[:, None]  # all joints walk from left to right
    joints[:, :, 1] = 16
    np.save(tmp_path / "joints.npy", joints)
    write_video(tmp_path / "long.mp4", np.zeros((24, 32, 32, 3), np.uint8), fps=8)
    row = replace(
        records[0], video=tmp_path / "long.mp4", keypoints=tmp_path / "joints.npy", spans="video",
        start_s=1.0, end_s=2.0, map=None, regions_doctor1=("foot",),
    )  # fmt: skip
    write_manifest([row], tmp_path / "set.csv")
    manifest, _, _ = render(tmp_path / "set.csv", tmp_path / "out", maps="doctor1", size=32)
    (rendered,) = read_manifest(manifest)
    map_THW = torch.from_numpy(np.load(rendered.map).astype(np.float32))
    assert map_THW.shape == (8, 32, 32)
    assert map_THW.sum(dim=1).argmax(dim=1).tolist() == pytest.approx(list(range(8, 16)), abs=1)


def test_clips_without_joints_or_regions_have_no_map(walks, tmp_path):
    records = read_manifest(walks / "manifest.csv")
    some = [replace(records[0], keypoints=None), replace(records[1], regions_doctor1=(), map=None), *records[2:]]
    write_manifest(some, tmp_path / "set.csv")
    manifest, drawn, without = render(tmp_path / "set.csv", tmp_path / "out", maps="doctor1", size=32)
    assert (drawn, without) == (28, [records[0].clip_id, records[1].clip_id])
    assert [record.map is None for record in read_manifest(manifest)[:3]] == [True, True, False]
    write_manifest([replace(record, keypoints=None) for record in records], tmp_path / "none.csv")
    with pytest.raises(DataError, match="no clip has keypoints and regions of both: nothing to draw"):
        render(tmp_path / "none.csv", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_folder_that_exists_and_an_unknown_doctor_are_refused(walks, tmp_path):
    with pytest.raises(ValueError, match="expected one of doctor1, doctor2, both"):
        render(walks, tmp_path / "out", maps="nobody")
    with pytest.raises(ValueError, match="exists"):
        render(walks, tmp_path)
    assert list(tmp_path.iterdir()) == []
