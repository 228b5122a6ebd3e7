"""`python -m videoclip`."""

from videoclip.cli import main

main()
