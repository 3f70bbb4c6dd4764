"""Pages to look at, from a run's records. Knows no torch."""
