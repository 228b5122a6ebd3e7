"""Search: the stored index, exact ranking, what is refused, what a broken image does, and the page."""

import base64
import errno
import io
import os
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from clip_common.backbones import load_clip
from clip_common.index import VectorIndex, VectorIndexError
from clipse import RetrievalModel, Retriever
from clipse.data import DataError
from clipse.report.pages import write_page

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SMALL = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
ODD_NAMES = ('a <b>bold & "quoted" [red].png', "snow été 雪.png", "sub folder/with spaces.JPG")


def small(seed: int = 0) -> RetrievalModel:
    return RetrievalModel(load_clip("small", model_config=SMALL, seed=seed))


def draw(file: Path, *, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """A picture of a few random patches: different seeds differ as scenes do."""
    file.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).save(file)
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A CLIP of random weights, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "small"
    small().save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Nine images, three of them with odd names."""
    folder = tmp_path / "photos"
    for seed in range(6):
        draw(folder / f"{seed}.png", seed=seed)
    for seed, name in enumerate(ODD_NAMES, start=6):
        draw(folder / name, seed=seed)
    return folder


@pytest.fixture
def search(clipse, model, photos, tmp_path, monkeypatch):
    """`search("a dog", "--k", 3)` -> what `clipse search` did, called in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(query, *options, folder=photos, source=model):
        return clipse("search", source, query, folder, *options)

    return call


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Sizes of the batches of images that are encoded from here on."""
    sizes: list[int] = []
    original = RetrievalModel.encode_image

    def counting(self, images_B3HW):
        sizes.append(len(images_B3HW))
        return original(self, images_B3HW)

    monkeypatch.setattr(RetrievalModel, "encode_image", counting)
    return sizes


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, error = result
    lines = [line for line in error.splitlines() if line.strip()]
    assert code == 2, error
    assert len(lines) == 1, f"not one line:\n{error}"
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"


def stored_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "runs").rglob("*") if path.is_file())


def stored_indexes(folder: Path) -> list[Path]:
    """Their folders."""
    return sorted({file.parent for file in stored_files(folder)})


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file in a folder."""
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def vectors_of(retriever: Retriever) -> torch.Tensor:
    """The indexed vectors, in the order of the names."""
    return retriever.gallery.vectors(sorted(retriever.gallery.ids))


def index_of(names: Sequence[str], vectors_ND: torch.Tensor, *, store: Path | None = None) -> VectorIndex:
    index = VectorIndex(model="0" * 64, model_name="random", collection="photos", folder=store)
    index.add(names, vectors_ND, stamps=[f"{row} {row + 1}" for row in range(len(names))])
    return index


def random_index(*, images: int, width: int) -> VectorIndex:
    vectors_ND = functional.normalize(torch.randn(images, width), dim=-1)
    return index_of([f"{row:03d}.jpg" for row in range(images)], vectors_ND)


# the order


@pytest.mark.parametrize("k", [1, 10, 200, 1000])
def test_the_nearest_are_those_of_a_full_sort(k):
    torch.manual_seed(0)
    index = random_index(images=200, width=16)
    query_D = functional.normalize(torch.randn(16), dim=0)
    hits = index.nearest(query_D, k)
    similarity_N = (index.vectors(index.ids) @ query_D).numpy()
    expected = np.argsort(-similarity_N)[:k]
    assert [hit.id for hit in hits] == [index.ids[row] for row in expected]
    assert [hit.similarity for hit in hits] == pytest.approx(similarity_N[expected].tolist(), abs=1e-6)


def test_equal_images_come_in_the_order_in_which_they_were_indexed_whatever_k():
    """Rows 2, 5 and 7 point at the query, row 4 away from it, the rest are at a right angle: all known by hand."""
    vectors_ND = torch.zeros(8, 4)
    vectors_ND[:, 1] = 1.0
    for row, first in {2: 1.0, 5: 1.0, 7: 1.0, 4: -1.0}.items():
        vectors_ND[row] = torch.tensor([first, 0.0, 0.0, 0.0])
    index = index_of([f"{row}.jpg" for row in range(8)], vectors_ND)
    order = [2, 5, 7, 0, 1, 3, 6, 4]
    for k in range(1, 9):
        hits = index.nearest(torch.tensor([1.0, 0.0, 0.0, 0.0]), k)
        assert [int(hit.id.removesuffix(".jpg")) for hit in hits] == order[:k]
    assert hits[-1].similarity == -1.0


# the stored index


def test_an_index_is_read_back_as_it_was_written(tmp_path):
    names = (*sorted(ODD_NAMES), os.fsdecode(b"zz latin \xe9.jpg"))
    torch.manual_seed(0)
    vectors_ND = functional.normalize(torch.randn(len(names), 8), dim=-1)
    given = index_of(names, vectors_ND, store=tmp_path / "index")
    given.save()
    found = VectorIndex.open(tmp_path / "index")
    assert (found.collection, found.model, found.model_name) == ("photos", given.model, "random")
    assert tuple(found.ids) == names
    assert found.stamps() == given.stamps() == {name: f"{row} {row + 1}" for row, name in enumerate(names)}
    assert torch.equal(found.vectors(names), vectors_ND)


def test_a_stored_index_holds_what_an_index_in_memory_holds(model, photos, tmp_path):
    in_memory = Retriever.from_pretrained(model).index(photos)
    store = tmp_path / "index"
    stored = Retriever.from_pretrained(model).index(photos, store=store)
    opened = Retriever.from_pretrained(model).open_index(store)
    for other in (stored, opened):
        assert other.paths == in_memory.paths
        assert other.gallery.ids == in_memory.gallery.ids
        torch.testing.assert_close(vectors_of(other), vectors_of(in_memory))
        found, expected = (which.search("a dog in the snow", k=4) for which in (other, in_memory))
        assert [hit.path for hit in found] == [hit.path for hit in expected]
        assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in expected], abs=1e-5)
    assert in_memory.paths == sorted(path for path in photos.rglob("*") if path.is_file())


def test_only_what_is_new_or_changed_is_encoded_and_what_is_gone_vanishes(model, photos, tmp_path, encoded):
    store = tmp_path / "index"
    Retriever.from_pretrained(model).index(photos, store=store)
    assert sum(encoded) == 9
    encoded.clear()
    written = snapshot(store)
    Retriever.from_pretrained(model).index(photos, store=store)
    assert (sum(encoded), snapshot(store)) == (0, written)

    draw(photos / "0.png", seed=100, size=(64, 64))  # changed
    draw(photos / "new" / "10.png", seed=10)
    (photos / "1.png").unlink()
    updated = Retriever.from_pretrained(model).index(photos, store=store)
    assert sum(encoded) == 2
    afresh = Retriever.from_pretrained(model).index(photos)
    assert updated.paths == afresh.paths
    assert photos / "1.png" not in updated.paths
    torch.testing.assert_close(vectors_of(updated), vectors_of(afresh), rtol=0, atol=1e-6)


def test_an_interrupted_index_goes_on_where_it_was(model, photos, tmp_path, encoded):
    store = tmp_path / "index"

    def stop(done: int, total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Retriever.from_pretrained(model).index(photos, store=store, batch_size=3, progress=stop)
    assert len(VectorIndex.open(store)) == 6
    encoded.clear()
    assert len(Retriever.from_pretrained(model).index(photos, store=store, batch_size=3).paths) == 9
    assert encoded == [3]


def test_a_growing_index_is_written_now_and_then(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("clipse.retriever.retriever.SECONDS_BETWEEN_SAVES", 0.0)
    store, seen = tmp_path / "index", []

    def look(done: int, total: int) -> None:
        seen.append(len(VectorIndex.open(store)) if store.exists() else 0)

    Retriever.from_pretrained(model).index(photos, store=store, batch_size=3, progress=look)
    assert seen == [0, 3, 6]
    assert len(VectorIndex.open(store)) == 9


def test_an_index_of_another_model_is_refused_with_both_fingerprints(model, photos, tmp_path):
    store = tmp_path / "index"
    own = Retriever.from_pretrained(model).index(photos, store=store)
    other = Retriever(small(seed=1))
    for use in (lambda: other.open_index(store), lambda: other.index(photos, store=store)):
        with pytest.raises(VectorIndexError) as error:
            use()
        assert "\n" not in str(error.value)
        assert own.fingerprint[:12] in str(error.value)
        assert other.fingerprint[:12] in str(error.value)
    assert other.gallery is None


def test_models_with_the_same_image_tower_share_an_index(model, photos, tmp_path, encoded):
    store = tmp_path / "index"
    Retriever.from_pretrained(model).index(photos, store=store)
    encoded.clear()
    other = RetrievalModel.from_pretrained(model)
    with torch.no_grad():
        next(other.text_tower.parameters()).add_(1.0)
    Retriever(other).index(photos, store=store)
    assert encoded == []
    with torch.no_grad():
        next(other.image_tower.parameters()).add_(1.0)
    with pytest.raises(VectorIndexError):
        Retriever(other).open_index(store)


def test_the_index_of_another_folder_is_refused(model, photos, scenes, tmp_path):
    store = tmp_path / "index"
    Retriever.from_pretrained(model).index(photos, store=store)
    with pytest.raises(VectorIndexError, match="is the index of"):
        Retriever.from_pretrained(model).index(scenes / "Images", store=store)


def segment_of(store: Path) -> Path:
    return next(store.glob("segment-*.safetensors"))


def halved(store: Path) -> None:
    segment_of(store).write_bytes(segment_of(store).read_bytes()[: segment_of(store).stat().st_size // 2])


def no_index(store: Path) -> None:
    (store / "index.json").write_bytes(b"no index at all")


def of_other_parts(store: Path) -> None:
    parts = load_file(segment_of(store))
    save_file(parts | {"vectors": torch.zeros(1, 32)}, segment_of(store))


def of_weights(store: Path) -> None:
    save_file({"weight": torch.zeros(3)}, segment_of(store))


@pytest.mark.parametrize("damage", [halved, no_index, of_other_parts, of_weights])
def test_a_damaged_index_is_one_line_that_says_what_to_delete(search, tmp_path, damage):
    assert search("a dog")[0] == 0
    (store,) = stored_indexes(tmp_path)
    damage(store)
    refused(search("a dog"), str(store.relative_to(tmp_path)), "delete it")
    shutil.rmtree(store)
    assert search("a dog")[0] == 0


def test_an_index_of_the_version_before_is_refused(model, photos, tmp_path):
    file = tmp_path / "index.safetensors"
    parts = {"names": torch.tensor([97], dtype=torch.uint8), "vectors": torch.zeros(1, 32)}
    save_file(parts | {"stamps": torch.zeros(1, 2, dtype=torch.int64)}, file, metadata={"index": '{"format": 1}'})
    retriever = Retriever.from_pretrained(model)
    for use in (lambda: retriever.open_index(file), lambda: retriever.index(photos, store=file)):
        with pytest.raises(VectorIndexError, match=r"index\.safetensors is .*: delete it, and the items are encoded"):
            use()


def test_a_full_disk_leaves_the_former_index(model, photos, tmp_path, monkeypatch):
    store = tmp_path / "index"
    Retriever.from_pretrained(model).index(photos, store=store)
    before = snapshot(store)
    draw(photos / "new.png", seed=50)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clip_common.index.store.write_segment", full)
    with pytest.raises(OSError, match="No space left"):
        Retriever.from_pretrained(model).index(photos, store=store)
    assert snapshot(store) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "photos"]


# the command


def test_words_and_images_find_images_and_the_second_time_nothing_is_encoded(search, photos, tmp_path, encoded):
    code, printed, error = search("a dog in the snow", "--k", 3)
    assert code == 0, error
    assert "a dog in the snow" in printed
    assert "9 images" in printed
    assert len([line for line in printed.splitlines() if line.split()[:1] in (["1"], ["2"], ["3"])]) == 3
    (store,) = stored_indexes(tmp_path)
    assert store.parent == tmp_path / "runs" / "cache" / "index"
    encoded.clear()
    query = photos / ODD_NAMES[0]
    code, printed, error = search(query, "--k", 1)
    assert code == 0, error
    assert f"1.000   {ODD_NAMES[0]}" in printed
    assert encoded == [1]  # the query


@pytest.mark.parametrize("way", ["run", "name"])
def test_a_run_and_a_model_by_name_search_too(search, trained, photos, tmp_path, way):
    if way == "run":
        result = search("a red cup", f"data.cache_dir={tmp_path / 'runs'}", source=trained())
    else:
        result = search("a red cup", f"model.architecture={SMALL}", source="mine")
    assert result[0] == 0, result[2]
    assert "9 images" in result[1]
    assert len(stored_indexes(tmp_path)) == 1


def test_an_image_that_cannot_be_read_is_skipped_counted_and_named(search, photos, tmp_path, encoded):
    (photos / "broken.jpg").write_bytes((photos / ODD_NAMES[2]).read_bytes()[:300])
    (photos / "empty.png").touch()
    for expected in (9, 0):
        encoded.clear()
        code, printed, error = search("a dog", "--k", 100)
        assert code == 0, error
        assert "9 images" in printed
        assert "skipped 2" in printed
        assert "broken.jpg: not a readable image" in printed
        assert "empty.png: not a readable image" in printed
        assert sum(encoded) == expected
    (store,) = stored_indexes(tmp_path)
    assert not {"broken.jpg", "empty.png"} & set(VectorIndex.open(store).ids)


def test_an_index_in_python_stops_at_an_image_that_cannot_be_read(model, photos):
    (photos / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        Retriever.from_pretrained(model).index(photos)
    retriever = Retriever.from_pretrained(model).index(photos, on_error="skip")
    assert list(retriever.skipped) == ["broken.jpg"]
    assert len(retriever.paths) == 9


def test_a_folder_of_nothing_but_broken_images(search, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    refused(search("a dog", folder=tmp_path / "bad"), "none of its 1 images", "a.jpg")
    assert stored_files(tmp_path) == []


def test_what_cannot_be_searched_is_one_line(search, photos, tmp_path):
    (tmp_path / "none").mkdir()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    refused(search("a dog", folder=tmp_path / "none"), "none", "no image")
    refused(search("a dog", folder=tmp_path / "nowhere"), "nowhere", "not a folder")
    refused(search(broken), "broken.jpg", "not a readable image")
    refused(search("absent.jpg"), "absent.jpg", "no such image")
    refused(search("  \t"), "empty")
    refused(search("a dog", "--k", 0), "--k")
    refused(search("a dog", source="ViT-B-23"), "ViT-B-23", "ViT-B-32")
    assert stored_files(tmp_path) == []
    assert search("dog " * 200)[0] == 0  # longer than a file name may be


def test_mistakes_in_python_are_told(model, photos):
    retriever = Retriever.from_pretrained(model)
    with pytest.raises(ValueError, match="index"):
        retriever.search("a dog")
    retriever.index(photos)
    with pytest.raises(ValueError, match="k=0"):
        retriever.search("a dog", k=0)
    with pytest.raises(ValueError, match="empty"):
        retriever.search(" ")


def test_an_image_turned_by_exif_is_found_by_its_upright_self(model, photos, tmp_path):
    upright = Image.open(photos / "0.png")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    turned.save(photos / "turned.png", exif=exif)
    best, second = Retriever.from_pretrained(model).index(photos).search(upright, k=2)
    assert {best.path.name, second.path.name} == {"0.png", "turned.png"}
    assert second.similarity == pytest.approx(1.0, abs=1e-6)


# words that a model does not know


@pytest.fixture(scope="module")
def dual(tmp_path_factory) -> RetrievalModel:
    """A tiny DINOv2 and a tiny BERT with a WordPiece vocabulary of few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from clip_common.backbones import load_dual

    root = tmp_path_factory.mktemp("towers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "in", "the", "snow", "##s"]
    pieces = Tokenizer(models.WordPiece({word: row for row, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(
        **sizes, vocab_size=len(vocabulary), intermediate_size=16, max_position_embeddings=20
    )
    vision = transformers.Dinov2Config(**sizes, image_size=28, patch_size=14, mlp_ratio=2)
    transformers.BertModel(bert).save_pretrained(root / "text")
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=16, **special).save_pretrained(
        root / "text"
    )
    transformers.Dinov2Model(vision).save_pretrained(root / "vision")
    return RetrievalModel(load_dual(vision=root / "vision", text=root / "text", embed_dim=8, image_size=28))


def test_a_query_of_unknown_words_warns_and_still_searches(dual, photos):
    retriever = Retriever(dual).index(photos)
    with pytest.warns(UserWarning, match="knows no word of 'xylophone quartet'"):
        assert len(retriever.search("xylophone quartet", k=3)) == 3
    for known in ("a dog in the snow", "dogs", "a xylophone"):  # one known word is enough
        assert len(retriever.search(known, k=3)) == 3  # a warning would be an error here


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_command_says_it_in_one_line_on_stderr(search, dual, tmp_path):
    dual.save_pretrained(tmp_path / "dual")
    code, printed, error = search("xylophone", source=tmp_path / "dual")
    assert code == 0
    assert "9 images" in printed
    (line,) = [line for line in error.splitlines() if line.strip()]
    assert line.startswith("warning: the model knows no word of 'xylophone'")


def test_a_byte_level_tokenizer_knows_every_word(model, photos):
    assert len(Retriever.from_pretrained(model).index(photos).search("xqzw ☃ 雪", k=3)) == 3


# the page


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def pictures(self) -> list[Image.Image]:
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        prefix = "data:image/jpeg;base64,"
        assert all(source.startswith(prefix) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix)))) for source in sources]


def test_the_page_stands_alone_and_says_what_was_found(search, model, photos, tmp_path):
    draw(photos / "large.png", seed=20, size=(1200, 400))
    query = 'a <script>alert("dog")</script> & snow'
    code, printed, error = search(query, "--html", "page.html", "--k", 10)
    assert code == 0, error
    assert "page.html" in printed
    page = Page(tmp_path / "page.html")
    assert query in page.text
    assert f"10 of 10 images in {photos}" in page.text
    assert f"{model.name} · 20" in page.text  # and the date
    place = 0
    for hit in Retriever.from_pretrained(model).index(photos).search(query, k=10):
        name = hit.path.relative_to(photos).as_posix()
        place = page.text.index(f"{hit.similarity:.3f}{name}", place)  # in this order
    assert set(ODD_NAMES) <= {attributes["alt"] for tag, attributes in page.tags if tag == "img"}
    sizes = [picture.size for picture in page.pictures()]
    assert len(sizes) == 10
    assert (256, 85) in sizes
    rest = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not [word for word in ("<script", "<link", "http:", "https:", "//", "url(", "@import") if word in rest]


def test_the_page_of_an_image_shows_it_first(search, photos, tmp_path):
    query = photos / ODD_NAMES[2]
    assert search(query, "--html", "like.html", "--k", 2)[0] == 0
    page = Page(tmp_path / "like.html")
    assert "images like" in page.text
    assert query.name in page.text
    asked, best, other = (np.asarray(picture) for picture in page.pictures())
    assert np.array_equal(asked, best)
    assert not np.array_equal(asked, other)


def test_a_name_that_is_no_utf8_is_shown(search, photos, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(photos) + b"/latin \xe9.png"))
    try:
        draw(odd, seed=30)
    except OSError:
        pytest.skip("this file system takes no such name")
    code, printed, error = search("a dog", "--k", 10, "--html", "page.html")
    assert code == 0, error
    assert "latin \N{REPLACEMENT CHARACTER}.png" in printed
    assert "latin \N{REPLACEMENT CHARACTER}.png" in Page(tmp_path / "page.html").text


def test_a_page_replaces_a_page_and_nothing_else(search, tmp_path):
    file = tmp_path / "page.html"
    file.write_text("<p>mine</p>")
    refused(search("a dog", "--html", "page.html"), "page.html", "no page of clipse search")
    assert file.read_text() == "<p>mine</p>"
    assert stored_files(tmp_path) == []  # told before anything is encoded
    file.unlink()
    assert search("a dog", "--html", "page.html")[0] == 0
    assert search("a red cup", "--html", "page.html")[0] == 0
    assert "a red cup" in Page(file).text


def test_a_page_is_written_whole_or_not_at_all(model, photos, tmp_path):
    retriever = Retriever.from_pretrained(model).index(photos)
    hits = retriever.search("a dog", k=3)
    hits[2].path.unlink()
    file = tmp_path / "page.html"
    with pytest.raises(DataError, match="no such file"):
        write_page(file, query="a dog", hits=hits, root=photos, images=9, model="small")
    assert not file.exists()
    assert not list(tmp_path.glob(".*"))
