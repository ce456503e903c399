"""``python -m jaxprobe`` is the command line."""

from jaxprobe.cli.main import main

main()
