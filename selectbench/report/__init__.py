"""A ranking to text. Pure functions."""
