"""Attention as its definition says, token by token in float64: what the backends are compared with."""

import numpy as np


def numpy_attention(query, key, value, segment_ids, window):
    """Query [b, t, n, h], key and value [b, t, k, h], segment ids [b, t]; window 0 is none."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    share = query.shape[2] // key.shape[2]
    mixed = np.zeros(query.shape)
    for row, segments in enumerate(np.asarray(segment_ids)):
        for i, segment in enumerate(segments):
            first = max(0, i - window + 1) if window else 0
            seen = [j for j in range(first, i + 1) if segments[j] == segment != 0]
            for head in range(query.shape[2] if seen else 0):
                scores = key[row, seen, head // share] @ query[row, i, head] / np.sqrt(query.shape[-1])
                weights = np.exp(scores - scores.max())
                mixed[row, i, head] = weights / weights.sum() @ value[row, seen, head // share]
    return mixed
