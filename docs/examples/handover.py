"""A kind of curriculum: the first data set hands over to the last halfway, while the rate falls by steps."""

from collections.abc import Mapping

from orca_jax import plugins
from orca_jax.config import StageConfig


def weights(stage: StageConfig, done: float) -> Mapping[str, float]:
    """Nine rows of ten are of the first data set in the first half, of the last one in the second."""
    first, last = stage.names[0], stage.names[-1]
    return {first: 9, last: 1} if done < 0.5 else {first: 1, last: 9}


def rate(stage: StageConfig, done: float) -> float:
    """A factor of `learning_rate`: 1, then 1/2, then 1/4."""
    return 0.5 ** int(3 * min(done, 0.99))


plugins.curriculum("handover", weights=weights, rate=rate)
