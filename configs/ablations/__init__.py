"""Sets of arms that differ in one factor."""
