"""Independent random streams of one trial: weights, data order, dropout."""

import hashlib


def derived_seed(seed: int, purpose: str, *parts: int) -> int:
    """A 63-bit seed for one purpose, so that drawing more weights never shifts the data order."""
    text = "/".join(map(str, (seed, purpose, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
