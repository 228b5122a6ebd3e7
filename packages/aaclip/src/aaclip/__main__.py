"""`python -m aaclip`."""

from aaclip.cli import main

main()
