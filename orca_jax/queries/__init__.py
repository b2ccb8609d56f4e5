"""The queries: readers of FLAN-v2, sampling, system messages and procedural puzzles."""
