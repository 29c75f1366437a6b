"""`python -m experiments.quickstart`; the story is in `train.py`."""

from experiments.quickstart.train import main

main()
