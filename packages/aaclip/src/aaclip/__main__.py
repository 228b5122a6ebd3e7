"""`python -m aaclip`."""

from aaclip.cli.main import main

main()
