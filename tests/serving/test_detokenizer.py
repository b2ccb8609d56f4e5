"""A reply's words: stop texts are found wherever tokens break, and what is streamed is never taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.data import layouts
from orca_jax.serving.local import Detokenizer

TEXTS = st.text(alphabet="ab \nché日", min_size=0, max_size=30)
STOPS = st.lists(st.text(alphabet="ab \nché", min_size=1, max_size=4), min_size=0, max_size=3)


def ids(tokenizer, text):
    return tokenizer.encode(text, first=False)


@given(text=TEXTS, stops=STOPS)
@settings(max_examples=150)
def test_a_stop_text_ends_the_reply_with_the_token_that_makes_it_whole(tokenizer, text, stops):
    words, tokens = Detokenizer(tokenizer, "orca", stops), ids(tokenizer, text)
    prefixes = [tokenizer.decode(tokens[:size]) for size in range(len(tokens) + 1)]
    expected = next((n for n, prefix in enumerate(prefixes) if any(stop in prefix for stop in stops)), None)
    assert words.ends(tokens) == expected
    if expected is not None:
        said = words.text(tokens[:expected])
        assert prefixes[expected].startswith(said)
        assert not any(stop in said for stop in stops)
        # Looked at later, with more tokens there, the end is the same.
        assert all(words.ends(tokens[:size]) == expected for size in range(expected, len(tokens)))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@given(text=TEXTS, stops=STOPS)
@settings(max_examples=60)
def test_what_is_settled_is_a_start_of_the_reply(tokenizer, layout, text, stops):
    before, after = layouts.answer_frame(layout, tokenizer)
    words, tokens = Detokenizer(tokenizer, layout, stops), ids(tokenizer, before + text + after)
    end = words.ends(tokens)
    tokens = tokens[: len(tokens) if end is None else end]
    settled = [words.stable_text(tokens[:size]) for size in range(len(tokens))]
    for earlier, later in zip(settled, [*settled[1:], words.text(tokens)], strict=False):
        assert later.startswith(earlier)
    # Nothing is held back for long: less than the longest stop, the frame and one character's bytes.
    longest = max([len(stop) for stop in stops] + [len(after), 1])
    if end is None and settled:
        assert len(settled[-1]) >= len(tokenizer.decode(tokens[:-1]).rstrip("\ufffd")) - longest - len(before)


def test_a_stop_text_over_several_tokens_is_never_shown(tokenizer):
    words, tokens = Detokenizer(tokenizer, "orca", ["qzx"]), ids(tokenizer, "the red dog qzx the cat")
    end = words.ends(tokens)
    shown = [words.stable_text(tokens[:size]) for size in range(end)]
    assert words.text(tokens[:end]) == "the red dog "
    assert not any("q" in text for text in shown)


def test_the_stop_that_is_whole_first_counts(tokenizer):
    """A longer stop that begins earlier but is whole later does not count, however many tokens are seen."""
    tokens = ids(tokenizer, "a z y x w v")
    words = Detokenizer(tokenizer, "orca", ["z y x w", "y"])
    assert words.text(tokens[: words.ends(tokens)]) == "a z "


def test_torn_characters_wait_for_their_bytes(tokenizer):
    tokens = ids(tokenizer, "日")
    words = Detokenizer(tokenizer, "orca")
    assert len(tokens) > 1
    assert [words.stable_text(tokens[:size]) for size in range(1, len(tokens))] == [""] * (len(tokens) - 1)
    assert words.stable_text(tokens) == "日"


def test_empty_stops_stop_nothing(tokenizer):
    words = Detokenizer(tokenizer, "orca", ["", "never"])
    assert words.ends(ids(tokenizer, "the dog")) is None
    assert words.text(ids(tokenizer, "the dog")) == "the dog"


def test_a_stop_that_names_a_control_token_ends_a_reply_at_it(tokenizer):
    """The layout's own stop is another one, and no text shows a control token."""
    words = Detokenizer(tokenizer, "chatml", ["</s>", "dog"])
    said, end = ids(tokenizer, "the red"), tokenizer.control_id("</s>")
    assert words.ends([*said, end, *ids(tokenizer, " dog")]) == len(said)
    assert words.text(said) == "the red"
    assert words.ends([*ids(tokenizer, "the dog"), end]) == len(ids(tokenizer, "the dog"))
    assert words.ends(said) is None


def test_without_a_layout_a_reply_is_all_that_its_tokens_spell(tokenizer):
    tokens = ids(tokenizer, " the dog ")
    assert Detokenizer(tokenizer, None).text(tokens) == " the dog "
    assert Detokenizer(tokenizer, "llama2").text(tokens) == "the dog"
