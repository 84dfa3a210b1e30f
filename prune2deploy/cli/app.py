"""The ``p2d`` program."""


def main() -> None:
    """Run the command line."""
