"""Write ``prune2deploy/checkpoint/signatures.json`` anew from the torchvision and timm installed here.

    python tools/store_signatures.py

Takes about ten minutes on one core. Run it when the constraints move to a newer torchvision or timm.
"""

import importlib.metadata
import json
import logging
import sys
import warnings
from pathlib import Path

from prune2deploy.checkpoint.signatures import INDEX_FILE, signature_of
from prune2deploy.errors import ModelError
from prune2deploy.model.spec import TIMM, TORCHVISION, ModelSpec, architecture_names
from prune2deploy.storage import write_text

TARGET = Path(__file__).parents[1] / "prune2deploy" / "checkpoint" / INDEX_FILE


def main() -> None:
    """One line of JSON an architecture, so that a new library version shows as a readable difference."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    blocks = []
    for source in (TORCHVISION, TIMM):
        lines = []
        for name in architecture_names(source):
            try:
                row = signature_of(ModelSpec(source=source, name=name)).to_row()
            except ModelError as error:
                sys.stderr.write(f"left out: {error}\n")
                continue
            lines.append(f"  {json.dumps(name)}: {json.dumps(row, separators=(',', ':'))}")
        sys.stderr.write(f"{source}: {len(lines)} architectures\n")
        blocks.append(f" {json.dumps(source)}: {{\n" + ",\n".join(lines) + "\n }")
    versions = json.dumps({source: importlib.metadata.version(source) for source in (TORCHVISION, TIMM)})
    write_text(TARGET, '{"versions": ' + versions + ', "architectures": {\n' + ",\n".join(blocks) + "\n}}\n")


if __name__ == "__main__":
    main()
