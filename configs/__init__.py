"""One file per experiment; its docstring documents it."""
