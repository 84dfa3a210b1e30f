"""The one file through which training and deployment meet: ``evaluation.npz``.

Export writes it from real inputs; parity, accuracy and benchmarking read nothing else of the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prune2deploy.errors import InputError
from prune2deploy.storage import atomic_path

_REFERENCE = "reference/"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """Inputs of the model with what they should give.

    Shapes: ``inputs`` as the exported network takes them, (N, C, H, W) float32 or bytes (N, H, W, C) uint8; ``labels``
    (N,) int64, or None without labelled data; ``references`` maps a variant's name to the torch model's float32
    outputs for the first M inputs, (M, ...): what the file's first output should be.
    """

    inputs: NDArray[np.float32] | NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    references: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write everything to one compressed archive, atomically."""
        arrays: dict[str, NDArray[np.generic]] = {"inputs": self.inputs}
        if self.labels is not None:
            arrays["labels"] = self.labels
        arrays |= {_REFERENCE + name: outputs for name, outputs in self.references.items()}
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "EvaluationSet":
        """Read it back. Nothing is unpickled.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                return cls(
                    inputs=archive["inputs"],
                    labels=archive.get("labels"),
                    references={
                        name.removeprefix(_REFERENCE): archive[name]
                        for name in archive.files
                        if name.startswith(_REFERENCE)
                    },
                )
        except FileNotFoundError as error:
            raise InputError("is missing", where=str(path), hint="run `p2d export` first") from error
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError("is damaged", where=str(path), hint="run `p2d export` again") from error
