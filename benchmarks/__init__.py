"""Measurements beside other software, for developers: run from a clone, not part of the wheel."""
