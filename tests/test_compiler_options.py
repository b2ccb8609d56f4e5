"""What `compiler_options` becomes: the platform's options that the XLA at hand knows, or a table."""

import logging

import jax
import pytest

from orca_jax import compiler_options
from orca_jax.compiler_options import FASTEST, CompilerOptionError

YNN = "xla_cpu_experimental_ynn_fusion_type"
MADE_UP = {"xla_made_up": "1"}


def test_automatic_ones_are_the_platforms_and_xla_takes_them(caplog):
    assert compiler_options.resolved("auto") == FASTEST["cpu"] == {YNN: "LIBRARY_FUSION_TYPE_DOT"}
    assert not caplog.records


def test_an_automatic_one_that_xla_does_not_know_is_left_out_with_a_line(monkeypatch, caplog):
    monkeypatch.setitem(FASTEST, "cpu", FASTEST["cpu"] | MADE_UP)
    with caplog.at_level(logging.WARNING):
        assert compiler_options.resolved("auto").keys() == {YNN}
    (line,) = caplog.messages
    assert "leaves out xla_made_up=1" in line


def test_a_table_is_taken_as_it_is_and_what_xla_does_not_know_is_refused_by_name():
    assert compiler_options.resolved(MADE_UP, begun={}) == MADE_UP
    with pytest.raises(CompilerOptionError, match=r"compiler_options\.xla_made_up'.*remove it, or set"):
        compiler_options.check({YNN: "LIBRARY_FUSION_TYPE_DOT", **MADE_UP})
    with pytest.raises(CompilerOptionError, match=rf"{YNN}.*'of none' is not a valid"):
        compiler_options.check({YNN: "of none"})
    assert compiler_options.check({}) == {}


def test_a_run_keeps_what_it_began_with():
    assert compiler_options.resolved("auto", begun={}) == {}
    assert compiler_options.known(compiler_options.resolved("auto", begun=MADE_UP)) == {}


def test_options_reach_the_program():
    compiled = jax.jit(lambda x: x @ x, compiler_options=compiler_options.resolved("auto"))
    text = compiled.lower(jax.numpy.ones((256, 256))).compile().as_text()
    assert "ynn" in text
