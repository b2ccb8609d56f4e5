"""What is asked: readers of FLAN-v2, sampling, system messages and procedural puzzles."""
