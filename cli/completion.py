"""`quorate completion`: what a shell has to run to complete this command."""

from __future__ import annotations

import click

from cli.output import reading, tell_text


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@reading
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    bash   eval "$(quorate completion bash)"      in ~/.bashrc
    zsh    eval "$(quorate completion zsh)"       in ~/.zshrc
    fish   quorate completion fish > ~/.config/fish/completions/quorate.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, "click knows the shells offered"
    script = made(context.find_root().command, {}, "quorate", "_QUORATE_COMPLETE").source()
    tell_text(script if script.endswith("\n") else f"{script}\n")
