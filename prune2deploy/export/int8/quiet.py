"""Keeping ONNX Runtime's quantisation tools off the terminal, where they print and log."""

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Swallow standard output and logging; standard error stays, because progress is drawn there."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
