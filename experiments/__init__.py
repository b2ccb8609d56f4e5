"""Thin programs, one an arrow of the pipeline; `experiments.run` is all of them in a row."""
