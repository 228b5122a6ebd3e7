"""`python -m videoclip`."""

from videoclip.cli.main import main

main()
