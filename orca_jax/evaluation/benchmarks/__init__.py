"""Benchmarks, one per file: readers of their files and prompts, as `Question`s."""
