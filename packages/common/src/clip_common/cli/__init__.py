"""What every command line here shares: an application with one-line errors, output, and common verbs.

    app = cli.application("clipse", help="CLIP training for image-text retrieval.")
    cli.add_config_verb(app, package="clipse", example="loss.name=clip > my.yaml")

    @app.command("train")
    def train_command(overrides: Overrides = None, config: ConfigName = None) -> None:
        from clipse.training.experiment import train  # import heavy modules inside verbs, so that --help is quick
        ...

    def main() -> None:  # the console script
        cli.main(app)

Nothing here imports torch.
"""

from clip_common.cli.application import application, main
from clip_common.cli.display import (
    announce,
    check_all_read,
    check_no_problems,
    console,
    print_files,
    print_table,
    progress,
)
from clip_common.cli.verbs import ConfigName, NewFolder, Overrides, Resume, add_config_verb, add_prefetch_verb

__all__ = [
    "ConfigName",
    "NewFolder",
    "Overrides",
    "Resume",
    "add_config_verb",
    "add_prefetch_verb",
    "announce",
    "application",
    "check_all_read",
    "check_no_problems",
    "console",
    "main",
    "print_files",
    "print_table",
    "progress",
]
