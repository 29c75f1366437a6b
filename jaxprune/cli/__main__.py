"""``python -m jaxprune.cli``: the command ``jaxprune`` without its entry point."""

from jaxprune.cli.main import main

raise SystemExit(main())
