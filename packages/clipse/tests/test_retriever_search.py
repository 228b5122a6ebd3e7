"""`clipse search`: words and images find images; unreadable images, wrong queries, words that a model does not know."""

import pytest
import toy_photos as toy
from helpers.commands import refused

from clip_common.index import VectorIndex
from clipse import RetrievalModel, Retriever

SMALL = toy.SMALL
ODD_NAMES = toy.ODD_NAMES
model = toy.model
photos = toy.photos
search = toy.search
encoded = toy.encoded
stored_files = toy.stored_files
stored_indexes = toy.stored_indexes


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
