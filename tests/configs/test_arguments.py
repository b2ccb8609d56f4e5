"""The argument after a config's path."""

import pytest

from orca_jax.configs.arguments import Arguments, parse

VARIANTS = ("small", "large")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Arguments("small", False)),
        (None, Arguments("small", False)),
        ("runlocal", Arguments("small", True)),
        ("variant=large", Arguments("large", False)),
        ("variant=large,runlocal", Arguments("large", True)),
        ("runlocal,variant=large", Arguments("large", True)),
    ],
)
def test_read(text, expected):
    assert parse(text, variant=VARIANTS) == expected


def test_weights_to_start_from():
    found = parse("init=/share/llama-13b,runlocal", variant=VARIANTS, init=True)
    assert found == Arguments("small", True, "/share/llama-13b")
    with pytest.raises(ValueError, match="known: runlocal, init=FOLDER, variant="):
        parse("init=", variant=VARIANTS, init=True)
    with pytest.raises(ValueError, match=r"unknown config argument 'init=x'; known: runlocal, variant="):
        parse("init=x", variant=VARIANTS)


def test_where_the_data_are():
    found = parse("data=../levels,init=smollm2", variant=VARIANTS, init=True, data=True)
    assert found == Arguments("small", False, "smollm2", "../levels")
    with pytest.raises(ValueError, match="known: runlocal, data=PATH, variant="):
        parse("init=x", variant=VARIANTS, data=True)


@pytest.mark.parametrize("text", ["variant=huge", "runlocl", "variant", "runlocal=1", "large"])
def test_unknown_arguments_are_refused_with_the_known_ones(text):
    with pytest.raises(ValueError, match=rf"unknown config argument '{text}'; known: .*small\|large"):
        parse(text, variant=VARIANTS)
