"""python -m prune_fe: the same as the command prune-fe, for torchrun and accelerate."""

import sys

from prune_fe.cli.app import main

sys.exit(main())
