"""One file an experiment; each file's docstring is its document."""
