"""Tables out of scores and of the paper's own cells."""
