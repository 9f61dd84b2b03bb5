"""Records to a ranking. Pure functions."""
