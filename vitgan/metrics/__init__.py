"""Numbers that say how good samples are."""
