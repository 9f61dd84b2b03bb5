"""A team's own code, outside the package: one file for each thing that a suite can name."""
