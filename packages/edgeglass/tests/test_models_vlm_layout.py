"""Turns to tokens: what is supervised, where the image goes, and what is cut."""

import pytest
import toy_decoders
from hypothesis import given
from hypothesis import strategies as st
from toy_decoders import END, make_layout

from edgeglass.models.vlm.layout import TextLayout, fit_length


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return toy_decoders.load_toy(tmp_path_factory.mktemp("toy") / "language")


def parts(layout, encoded):
    """The text before the image, the text that is read, and the text that is learned."""
    decode = layout.tokenizer.decode
    read = decode([id for id, learned in zip(encoded.ids, encoded.supervised, strict=True) if not learned])
    learned = decode([id for id, learned in zip(encoded.ids, encoded.supervised, strict=True) if learned])
    return decode(encoded.before), read, learned


def test_plain_turns(language):
    layout = make_layout(language)
    encoded = layout.encode([("who?", " me "), ("why? ", "ünïque 象")], image=True)
    assert parts(layout, encoded) == ("", "who?\nwhy?\n", f"me{END}ünïque 象{END}")
    assert encoded.cut == 0


def test_a_chat_puts_the_image_into_the_first_turn_of_the_user(language):
    layout = make_layout(language, "chat")
    encoded = layout.encode([("who?", "me"), ("why?", "so")], image=True)
    expected = f"who?{END}\n<|assistant|>\n<|user|>why?{END}\n<|assistant|>"
    assert parts(layout, encoded) == ("<|user|>", expected, f"me{END}so{END}")
    assert encoded.before == layout.before_image
    text = layout.encode([("who?", "me")], image=False)
    assert text.before == ()
    assert parts(layout, text)[1].startswith("<|user|>who?")


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_a_question_continues_the_tokens_of_its_conversation(language, kind):
    layout = make_layout(language, kind)
    turns = [("who?", "me"), ("why?", "so")]
    asked = layout.encode_question(turns[:1], turns[1][0], image=True)
    whole = layout.encode(turns, image=True)
    assert whole.ids[: len(asked.ids)] == asked.ids
    assert whole.supervised[len(asked.ids)]
    assert not any(asked.supervised)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    language = toy_decoders.load_toy(toy_decoders.save_language_toy(tmp_path / "plain", chat=False))
    with pytest.raises(ValueError, match=r"has no chat template: set data\.layout=plain"):
        make_layout(language, "chat")


def test_a_template_that_rewrites_earlier_turns_is_refused(language):
    template = language.tokenizer.chat_template
    language.tokenizer.chat_template = "{{ messages[-1]['content'] }}{{ messages | length }}"
    try:
        layout = TextLayout(language.tokenizer, kind="chat", stop_ids=language.spec.stop_ids)
        with pytest.raises(ValueError, match="rewrites earlier turns"):
            layout.encode([("a", "b"), ("c", "d")], image=True)
    finally:
        language.tokenizer.chat_template = template


def test_the_oldest_text_is_cut_and_the_answer_kept():
    ids, supervised = [1, 2, 3, 4, 5, 6], [False, False, False, False, True, True]
    kept = fit_length((), ids, supervised, limit=4)
    assert (kept.ids, kept.supervised, kept.cut) == ((3, 4, 5, 6), (False, False, True, True), 2)
    # an answer that does not fit loses its end, and keeps one token to be predicted from
    assert fit_length((9,), ids, supervised, limit=3).ids == (4, 5)
    with pytest.raises(ValueError, match=r"leaves 1 for the text: raise data\.max_length"):
        fit_length((9,), ids, supervised, limit=2)


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(3, 40), st.integers(0, 1))
def test_a_cut_text_fits_and_still_teaches(supervised, limit, before):
    supervised = [False, *supervised, True]
    kept = fit_length((9,) * before, list(range(len(supervised))), supervised, limit=limit)
    assert len(kept.before) + len(kept.ids) == min(limit, before + len(supervised))
    assert kept.cut == max(0, before + len(supervised) - limit)
    assert any(kept.supervised[1:])
    assert kept.ids == tuple(range(kept.ids[0], kept.ids[0] + len(kept.ids)))
