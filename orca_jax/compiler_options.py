"""XLA's options by platform: those that `compiler_options: auto` means, and those that the XLA at hand knows.

They are given to the compiler with a program and not in the environment, so that they are those of that
program alone and a manifest can say them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import jax
import jaxlib

log = logging.getLogger(__name__)
FASTEST: Mapping[str, Mapping[str, str]] = {  # by platform; `python -m benchmarks.train` races the CPU's
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"},
}


class CompilerOptionError(ValueError):
    """XLA refuses options that a config gives; the message names them."""


def resolved(given: str | Mapping[str, str], begun: Mapping[str, str] | None = None) -> dict[str, str]:
    """The options of a run, as its manifest records them.

    Args:
      given: a config's `compiler_options`. `auto` is what the run began with, or else what is fastest on the
        platform and known to XLA.
      begun: the options that an earlier start of the same run recorded.
    """
    if not isinstance(given, str):
        return dict(given)
    return known(FASTEST.get(jax.default_backend(), {})) if begun is None else dict(begun)


def known(options: Mapping[str, str]) -> dict[str, str]:
    """The options without those that the XLA at hand does not take, each of which is logged."""
    refused = refusals(options)
    for name, why in refused.items():
        log.warning("compiler_options=auto leaves out %s=%s: %s", name, options[name], why)
    return {name: value for name, value in options.items() if name not in refused}


def check(options: Mapping[str, str]) -> dict[str, str]:
    """The options of a config's own table, all of which XLA takes.

    Raises:
      CompilerOptionError: it does not take one.
    """
    if refused := refusals(options):
        said = "; ".join(f"config key 'compiler_options.{name}': {why}" for name, why in refused.items())
        raise CompilerOptionError(f"{said}. Correct or remove it, or set compiler_options=auto")
    return dict(options)


def refusals(options: Mapping[str, str]) -> dict[str, str]:
    """The options that the XLA at hand does not take, with why."""
    if not options or not (whole := _refusal(options)):
        return {}
    each = {name: why for name, value in options.items() if (why := _refusal({name: value}))}
    return each or dict.fromkeys(options, whole)


def _refusal(options: Mapping[str, str]) -> str:
    """What XLA says against compiling a small program with these options; empty: nothing."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=dict(options)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError as error:
        said = str(error).partition("\n")[0].removeprefix("INVALID_ARGUMENT: ").rstrip(".")
        return f"{said} (jaxlib {jaxlib.__version__})"
    return ""
