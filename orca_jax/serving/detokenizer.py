"""A reply's text as its tokens arrive: where a stop text ends it, and what of it is final."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from orca_jax.data import layouts
from orca_jax.data.tokenizer import Tokenizer

TORN = "\ufffd"  # what a character decodes to of which some bytes are still to come


class Detokenizer:
    """Decodes replies in one layout; `stops` are texts that end them and are not part of them.

    Without a layout, a reply is all that its tokens spell. A stop that is a control token's name ends a
    reply where that token comes, which no text shows.
    """

    def __init__(self, tokenizer: Tokenizer, layout: str | None, stops: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stops = tuple(stop for stop in stops if stop)
        self._stop_ids = {tokenizer.control_ids[stop] for stop in self.stops if stop in tokenizer.control_ids}
        self._before, self._after = layouts.answer_frame(layout, tokenizer) if layout else ("", "")

    def text(self, tokens: Sequence[int]) -> str:
        """The reply that tokens spell, up to the first stop text."""
        text = self._whole(tokens)
        return text[: min([text.find(stop) for stop in self.stops if stop in text], default=None)]

    def ends(self, tokens: Sequence[int]) -> int | None:
        """With how many tokens the first stop text was whole; None while there is none.

        It depends on the tokens alone, not on how many are looked at together.
        """
        stop = next((n for n, token in enumerate(tokens) if token in self._stop_ids), None)
        tokens = tokens[:stop]
        if not self._stopped(tokens):
            return stop
        return bisect.bisect_left(range(len(tokens)), True, key=lambda size: self._stopped(tokens[:size]))

    def stable_text(self, tokens: Sequence[int]) -> str:
        """The part of an unfinished reply's text that no later token changes."""
        decoded = self.tokenizer.decode(tokens)
        if self._before.startswith(decoded):
            return ""
        text = decoded.removeprefix(self._before).rstrip(TORN)
        return text[: len(text) - max((_begun(text, end) for end in (*self.stops, self._after)), default=0)]

    def _whole(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens).removeprefix(self._before).removesuffix(self._after)

    def _stopped(self, tokens: Sequence[int]) -> bool:
        text = self._whole(tokens) if self.stops else ""
        return any(stop in text for stop in self.stops)


def _begun(text: str, end: str) -> int:
    """How many of a text's last characters may be the beginning of `end`."""
    return next((size for size in range(min(len(end), len(text)), 0, -1) if end.startswith(text[-size:])), 0)
