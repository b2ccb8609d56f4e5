"""The student: a LLaMA-family decoder as a pure function over a tree of parameters."""
