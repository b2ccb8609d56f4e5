"""The benchmark of starts compares the answers, and stops where a program fails."""

import pytest

from benchmarks import start


def test_answers_are_what_both_programs_print():
    ours = (
        "/reset forgets\n[system message: none]\n> It is Paris.\n> Rayleigh scattering, mostly. [cut off]\n> "
    )
    theirs = "> It is Paris.\n> Rayleigh scattering, mostly\n"
    assert start.answers(ours) == start.answers(theirs) == ["It is Paris.", "Rayleigh scattering,"]


def test_a_program_that_fails_is_no_time(tmp_path):
    with pytest.raises(SystemExit, match="ended with 3"):
        start.timed(["-c", "import sys; sys.exit(3)"], str(tmp_path), "")
