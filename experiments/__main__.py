"""`python -m experiments list | prepare | run | report`; see `experiments/README.md`."""

import sys

from experiments.runner.cli import main

sys.exit(main())
