"""`python -m clipse`."""

from clipse.cli.main import main

main()
