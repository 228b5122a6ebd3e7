"""One picture, one set of pixels: every reader that a user can reach gives what `clip_common.images` gives.

The table of files (modes × EXIF turns, each with an ICC profile) is that of `packages/common/tests/toy_images.py`.
"""

import ast
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_images
import toy_models
from PIL import Image

from clip_common.backbones import Preprocess, load_clip, save_bundle
from clip_common.images import read_grey, read_image

ROOT = Path(__file__).resolve().parents[1]

CASES = [case for case in toy_images.CASES if case.suffix]
ORIENTATIONS = range(1, 9)
ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every file of the table, checked against the pixels that numpy computes."""
    made = tmp_path_factory.mktemp("pictures")
    for number, case in enumerate(CASES):
        for orientation in ORIENTATIONS:
            file = made / f"{number:02d} {case.name} {orientation}{case.suffix}"
            file.write_bytes(case.encode(orientation=orientation, profile=toy_images.swapping_profile()))
            assert case.agrees(read_image(file), orientation), file.name
    return made


@pytest.fixture(scope="module")
def files(folder) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def clip():
    """A small CLIP with random weights."""
    made = load_clip("small", pretrained="random", model_config=ARCHITECTURE, seed=0)
    made.image_tower.freeze_trunk()
    return made


@pytest.fixture(scope="module")
def clip_folder(clip, tmp_path_factory) -> Path:
    """The same CLIP, saved."""
    saved = tmp_path_factory.mktemp("clip") / "small"
    save_bundle(clip, saved)
    return saved


@pytest.fixture
def seen(monkeypatch):
    """What every `Preprocess` returns while the test runs: the pixels that a model is fed, in order."""
    returned: list[torch.Tensor] = []
    call = Preprocess.__call__

    def spy(self, image, **options):
        returned.append(call(self, image, **options))
        return returned[-1]

    monkeypatch.setattr(Preprocess, "__call__", spy)
    return returned


def fed(preprocess: Preprocess, files: list[Path], *, squashed: int | None = None) -> list[torch.Tensor]:
    """What a model must be fed for these files."""
    pictures = [read_image(file) for file in files]
    if squashed is not None:
        from aaclip.data.augment import squash

        pictures = [squash(picture, None, side=squashed)[0] for picture in pictures]
    return [preprocess(picture) for picture in pictures]


def same(given: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(given) == len(expected) and all(torch.equal(one, two) for one, two in zip(given, expected, strict=True))


def same_in_any_order(given: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """As `same`, for readers that work in threads."""
    return sorted(one.numpy().tobytes() for one in given) == sorted(one.numpy().tobytes() for one in expected)


def tar_of(files: list[Path], tar: Path) -> Path:
    """A webdataset shard: members whose suffix says PNG, whatever they are, each with a caption."""
    with tarfile.open(tar, "w") as archive:
        for number, file in enumerate(files):
            for suffix, content in (("png", file.read_bytes()), ("txt", b"a thing")):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return tar


def clipse_records(files: list[Path]):
    from clipse.data.records import ImageRecord

    return [ImageRecord(number, file.name, file, ("a thing",), "train") for number, file in enumerate(files)]


def test_a_preprocessing_that_is_given_an_opened_picture(files, clip):
    for file, expected in zip(files, fed(clip.preprocess, files), strict=True):
        with Image.open(file) as opened:
            assert torch.equal(clip.preprocess(opened), expected), file.name


def test_the_feature_cache_with_files_and_with_members_of_a_shard(files, clip, seen, tmp_path):
    from clip_common.features import FeatureCache
    from clipse.data import load_captions

    expected = fed(clip.preprocess, files)
    for number, sources in enumerate((files, load_captions(tar_of(files, tmp_path / "train.tar")).images)):
        seen.clear()
        FeatureCache(tmp_path / str(number)).features(clip.image, sources)
        assert same_in_any_order(seen, expected)


def test_clipse_while_it_trains_from_files_and_from_shards(files, clip, tmp_path):
    from clipse.data import load_captions
    from clipse.data.dataset import Flickr8kDataset

    expected = fed(clip.preprocess, files)
    for records in (clipse_records(files), load_captions(tar_of(files, tmp_path / "train.tar")).images):
        dataset = Flickr8kDataset(records, preprocess=clip.preprocess)
        assert same([dataset[row].image for row in range(len(dataset))], expected)


def test_the_decoded_images_that_clipse_keeps(files, tmp_path):
    from clipse.data.cache import ImageCache

    records = clipse_records(files)
    kept = ImageCache(tmp_path / "cache", records, side=64)
    for record in records:
        assert np.array_equal(kept[record].permute(1, 2, 0), np.asarray(read_image(record.path))), record.name


def test_clipse_search_with_files_opened_pictures_and_an_index(folder, files, clip, seen):
    from clipse import Retriever
    from clipse.models.retrieval import RetrievalModel

    retriever, expected = Retriever(RetrievalModel(clip), device="cpu"), fed(clip.preprocess, files)
    seen.clear()
    retriever.encode_image(files)
    assert same(seen, expected)
    seen.clear()
    retriever.encode_image([Image.open(file) for file in files])
    assert same(seen, expected)
    seen.clear()
    retriever.index(folder)
    assert same_in_any_order(seen, expected)


def aaclip_dataset(files: list[Path], preprocess: Preprocess, *, side: int):
    from aaclip.data import AnomalyDataset, Record

    records = [Record(file, "thing", "train", anomalous=False) for file in files]
    return AnomalyDataset(records, preprocess=preprocess, size=side, seed=0)


def test_aaclip_while_it_trains_and_scores(files, clip):
    dataset = aaclip_dataset(files, clip.preprocess, side=32)
    given = [dataset[row].image_3HW for row in range(len(dataset))]
    assert same(given, fed(clip.preprocess, files, squashed=32))


def test_the_frozen_views_that_aaclip_keeps(files, clip, seen, tmp_path):
    from aaclip.config import Config
    from aaclip.models.backbone import make_model, make_preprocess
    from aaclip.training.features import FrozenViews

    preprocess, side = make_preprocess(clip, Config().preprocess), clip.preprocess.size
    expected = fed(preprocess, files, squashed=side)
    seen.clear()
    dataset = aaclip_dataset(files, preprocess, side=side)
    FrozenViews(tmp_path, dataset, make_model(clip, Config()).eval(), views=1)
    assert same(seen, expected)


def test_an_aaclip_detector_with_files_and_opened_pictures(files, clip_folder, seen):
    from aaclip import Detector

    detector = Detector.plain(f"local-dir:{clip_folder}")
    expected = fed(detector.preprocess, files, squashed=detector.size)
    for sources in (files, [Image.open(file) for file in files]):
        seen.clear()
        detector.predict(sources, name="thing", batch_size=64)
        assert same(seen, expected)


def frames_folder(file: Path, folder: Path) -> Path:
    """Two frames, both the same picture."""
    folder.mkdir()
    for frame in (1, 2):
        (folder / f"{frame}{file.suffix}").write_bytes(file.read_bytes())
    return folder


def test_the_frames_and_maps_of_videoclip(files, tmp_path):
    from torchvision.transforms.v2 import functional

    from videoclip.config import DataConfig
    from videoclip.data.decoding import read_frames
    from videoclip.data.pairs import read_pair
    from videoclip.data.records import ClipRecord

    for number, file in enumerate(files):
        frames = frames_folder(file, tmp_path / str(number))
        pixels_HW3 = np.asarray(read_image(file))
        assert np.array_equal(read_frames(frames, start_s=0, end_s=None, frames=2), [pixels_HW3] * 2), file.name
        record = ClipRecord("clip", "subject", frames, map=frames)
        pair = read_pair(record, replace(DataConfig(), frames=2, maps="file"), channels=1, side=8)
        frame_3SS = functional.resize(torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1), [8, 8], antialias=True)
        assert torch.equal(pair.frames_T3SS, torch.stack([frame_3SS] * 2)), file.name
        grey_1HW = torch.from_numpy(read_grey(file) / np.float32(255))[None]
        map_1SS = (functional.resize(grey_1HW, [8, 8], antialias=True) * 255).round().clamp(0, 255).to(torch.uint8)
        assert torch.equal(pair.map_CTSS, map_1SS.expand(1, 2, 8, 8)), file.name


@pytest.fixture(scope="module")
def aligner(clip_folder, tmp_path_factory):
    """An alignment model with the same CLIP as its image encoder."""
    from clip_common.config import load_config
    from edgeglass import Aligner, Config, build_model

    text = toy_models.save_text_encoder(tmp_path_factory.mktemp("encoders") / "text")
    encoders = [f"vision.name=local-dir:{clip_folder}", f"text.name={text}", "audio.name=null"]
    config = load_config(Config, overrides=[*(f"encoders.{one}" for one in encoders), "mrl.width=8", "mrl.dims=[]"])
    return Aligner(build_model(config), config, device="cpu")


def test_an_edgeglass_aligner_with_files_opened_pictures_and_an_index(folder, files, clip, aligner, seen, tmp_path):
    from edgeglass import Index

    expected = fed(clip.preprocess, files)
    opened = [Image.open(file) for file in files]
    for given in ({"images": files}, {"images": list(map(str, files))}, {"images": opened}, {"mixed": files + opened}):
        seen.clear()
        aligner.encode(**given)
        assert same_in_any_order(seen, expected * (2 if "mixed" in given else 1))
    seen.clear()
    assert Index.build(aligner, folder, tmp_path / "index").counts["image"] == len(files)
    assert same_in_any_order(seen, expected)


def edgeglass_items(files: list[Path], folder: Path, *, packed: bool):
    """The images of a set that `read_samples` reads: files that a JSONL names, or bytes in a parquet file."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    from edgeglass import read_samples
    from edgeglass.config import DataConfig
    from edgeglass.data.items import collect_items

    folder.mkdir()
    rows = [{"image": file.read_bytes() if packed else str(file), "caption": "a thing"} for file in files]
    root = folder / ("train.parquet" if packed else "train.jsonl")
    if packed:
        pq.write_table(pa.Table.from_pylist(rows), root)
    else:
        root.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return collect_items(read_samples(DataConfig(root=str(root))).splits["train"])["image"]


@pytest.mark.parametrize("packed", [False, True], ids=["files", "parquet"])
def test_edgeglass_while_it_aligns_from_cached_features_and_from_the_images(
    packed, files, clip, aligner, seen, tmp_path
):
    from clip_common.features import FeatureCache
    from clip_common.reporting import silent
    from edgeglass.scoring.features import read_inputs

    expected = fed(clip.preprocess, files)
    encoder, items = aligner.model.encoder_of("image"), edgeglass_items(files, tmp_path / "set", packed=packed)
    work = {"cache": FeatureCache(tmp_path / "cache"), "reporter": silent, "what": "image features"}
    seen.clear()
    read_inputs(encoder, items, trains=False, **work)
    assert same_in_any_order(seen, expected)
    seen.clear()
    read_inputs(encoder, items, trains=True, **work).batch(range(len(files)))
    assert same(seen, expected)


READERS = ("clip_common/images.py", "clip_common/synthetic/")
"""Where a picture may be opened."""


def opens_pictures(file: Path) -> bool:
    """Whether a file calls `open` of PIL's Image, or one of other libraries' readers."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    pillow = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("PIL", "PIL.Image")
        for alias in node.names
    }
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    openers = {f"{name}.open" for name in pillow} | {"PIL.Image.open", "ImageOps.exif_transpose"}
    others = ("imread", "decode_image", "decode_jpeg", "decode_png", "io.read_image")
    return bool(called & (openers | (pillow & {"open"}))) or any(name.endswith(others) for name in called)


def test_no_second_reader_of_pictures():
    places = [*ROOT.glob("packages/*/src"), ROOT / "benchmarks", ROOT / "scripts"]
    files = [file for place in places for file in place.rglob("*.py")]
    found = [file for file in files if opens_pictures(file)]
    assert any(str(file).endswith(READERS[0]) for file in found)  # the search finds what it should
    assert [str(file) for file in found if not any(reader in str(file) for reader in READERS)] == []
