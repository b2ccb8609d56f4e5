"""Explanation tuning: the loss on the teacher's tokens, the curriculum over teachers, the training loop."""
