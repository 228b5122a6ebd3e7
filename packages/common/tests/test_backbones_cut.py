"""Which texts a tokenizer cuts: counted without reading short ones, for each kind of tokenizer."""

import pytest
from helpers.real import real_model
from toy_language import word_tokenizer

from clip_common.backbones.tokenizers import ClipTokenizer, SentenceTokenizer, TransformersTokenizer, find_cut


@pytest.mark.parametrize("word", ["dog", "🐶"])
def test_open_clips_tokenizer_keeps_all_but_two_of_its_tokens_for_words(word):
    tokenizer = ClipTokenizer({"context_length": 20})
    texts = [" ".join([word] * words) for words in range(1, 30)]
    ids = tokenizer(texts)
    tokens = [len(tokenizer.encode.encode(text)) for text in texts]
    cut = find_cut(tokenizer, texts)
    assert cut == [place for place, count in enumerate(tokens) if count > 18]
    assert all((ids[place] != 0).all() for place in cut)
    assert find_cut(tokenizer, []) == find_cut(tokenizer, ["", "a dog"]) == []


def test_a_tokenizer_of_transformers_keeps_its_context():
    tokenizer = TransformersTokenizer(word_tokenizer(), context_length=6)
    tokenizer.tokenizer.pad_token = "<eos>"
    assert find_cut(tokenizer, [" ".join(["mug"] * words) for words in range(1, 10)]) == [6, 7, 8]


@pytest.mark.real
def test_a_sentence_transformer_counts_its_own_tokens():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(real_model("minilm")), device="cpu")
    tokenizer = SentenceTokenizer(model)
    room = model.max_seq_length - 2
    assert find_cut(tokenizer, ["dog " * room, "dog " * (room + 1), "a dog"]) == [1]
