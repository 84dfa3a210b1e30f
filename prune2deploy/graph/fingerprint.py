"""The identity of a model that plans refer to."""

import hashlib
import json
from collections.abc import Mapping


def fingerprint_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A digest of the names and shapes of a model's ``state_dict`` tensors, in any order."""
    listing = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
    return hashlib.sha256(listing.encode()).hexdigest()
