"""Shards written on Apache Beam have the bytes of shards written here."""

import functools
import importlib.util

import pytest

from orca_jax.data import beam, tokens
from orca_jax.data.beam import BeamError, on_beam
from orca_jax.data.tokens import Encoder
from tests.data.test_tokens import TRACES, content


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs the extra `beam`")
def test_the_direct_runner_writes_the_same_bytes(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_SIZE", 4)
    encoder = Encoder(tokenizer, "chatml")
    here = tokens.write_store(tmp_path / "here", TRACES, encoder)
    options = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    seen = []
    there = tokens.write_store(
        tmp_path / "there",
        TRACES,
        encoder,
        run=functools.partial(on_beam, options),
        on_shard=lambda *progress: seen.append(progress),
    )
    assert there == here
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_without_beam_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(beam.importlib, "import_module", missing)
    with pytest.raises(BeamError, match=r"orca_jax\[beam\]"):
        list(on_beam([], print, []))
