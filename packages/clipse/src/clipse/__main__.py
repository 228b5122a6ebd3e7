"""`python -m clipse`."""

from clipse.cli import main

main()
