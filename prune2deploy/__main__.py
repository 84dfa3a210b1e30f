"""``python -m prune2deploy``: the same program as ``p2d``."""

from prune2deploy.cli.app import main

main()
