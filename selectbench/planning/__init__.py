"""A suite to trials in run order, with what cannot run and why."""
