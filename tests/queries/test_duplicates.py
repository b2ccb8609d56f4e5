"""Texts that come twice."""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.queries import quality
from orca_jax.queries.quality import Exact, Near

needs_datasketch = pytest.mark.skipif(
    importlib.util.find_spec("datasketch") is None, reason="needs datasketch: install the extra `dedup`"
)


@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=4), max_size=30))
def test_exact_duplicates_are_those_of_a_set(texts):
    exact, seen = Exact(), set()
    for text in texts:
        assert exact.seen(text) == (text.strip() in seen)
        seen.add(text.strip())


def test_several_texts_are_not_their_concatenation():
    exact = Exact()
    assert not exact.seen("a", "bc")
    assert not exact.seen("ab", "c")
    assert exact.seen("a", "bc")
    assert not exact.seen("half a pair: \ud800")


WORDS = [f"word{i}" for i in range(60)]


@needs_datasketch
def test_near_duplicates_are_found_and_others_are_not():
    near = Near(0.8)
    text = " ".join(WORDS)
    assert not near.seen(text)
    assert near.seen(text.upper() + ".")
    assert near.seen(" ".join([*WORDS[:-2], "another", "end"]))
    assert not near.seen(" ".join(reversed(WORDS)))
    assert not near.seen(" ".join([*WORDS[:30], *(f"other{i}" for i in range(30))]))
    assert not near.seen("")
    assert near.seen("...")  # no words, as the text before


@needs_datasketch
def test_a_near_duplicate_of_a_near_duplicate_is_compared_with_what_was_kept():
    """Texts that drift word by word: each is near the one before, and the last is far from the first."""
    near, texts = (
        Near(0.7),
        [[f"new{i}" if i < done else word for i, word in enumerate(WORDS)] for done in (0, 4, 30)],
    )
    assert [near.seen(" ".join(text)) for text in texts] == [False, True, False]


def test_without_the_library_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(quality.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"orca_jax\[dedup\]"):
        Near(0.8)
