"""What the command lines share: an application with one-line errors, output, and common verbs.

    app = Application("clipse", help="CLIP training for image-text retrieval.")  # the console script
    cli.add_config_verb(app, package="clipse", example="loss.name=clip > my.yaml")

    @app.command("train")
    def train_command(overrides: Overrides = None, config: ConfigName = None) -> None:
        from clipse.training.experiment import train  # import heavy modules inside verbs, so that --help is quick
        ...

Nothing here imports torch.
"""

from clip_common.cli.application import Application
from clip_common.cli.display import (
    announce,
    check_all_read,
    check_no_problems,
    console,
    print_files,
    print_notes,
    print_table,
    progress,
)
from clip_common.cli.verbs import ConfigName, NewFolder, Overrides, Resume, add_config_verb, add_prefetch_verb

__all__ = [
    "Application",
    "ConfigName",
    "NewFolder",
    "Overrides",
    "Resume",
    "add_config_verb",
    "add_prefetch_verb",
    "announce",
    "check_all_read",
    "check_no_problems",
    "console",
    "print_files",
    "print_notes",
    "print_table",
    "progress",
]
