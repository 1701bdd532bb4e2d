"""The command ``lrt-lens completion``: a script by which a shell completes commands and options.

    lrt-lens completion bash > ~/.local/share/bash-completion/completions/lrt-lens

`lrt_lens.cli.main` prints it, because the script has every command.

Limits: bash, zsh and fish.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import tyro

from lrt_lens.cli._command import Command


@dataclass(frozen=True, kw_only=True)
class Completion(Command):
    """Print the script by which a shell completes commands, options and their values.

        lrt-lens completion bash > ~/.local/share/bash-completion/completions/lrt-lens
        lrt-lens completion zsh > ~/.zfunc/_lrt-lens      # a folder in $fpath
        lrt-lens completion fish > ~/.config/fish/completions/lrt-lens.fish

    Open a new shell afterwards.
    """

    words: ClassVar[str] = "completion"
    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Name of the shell."""
