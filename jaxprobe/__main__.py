"""``python -m jaxprobe`` is the command line."""

from jaxprobe.cli import main

main()
