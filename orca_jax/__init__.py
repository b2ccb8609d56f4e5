"""orca_jax: explanation tuning of small language models, after Orca (arXiv 2306.02707)."""

__version__ = "0.1.0"
