"""One isolated process group per trial, and the run around them."""
