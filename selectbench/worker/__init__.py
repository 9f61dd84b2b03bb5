"""Trains one trial and yields one record. The only part that imports torch."""
