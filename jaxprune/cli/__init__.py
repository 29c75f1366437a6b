"""The command ``jaxprune``."""

from jaxprune.cli.main import main as main
