"""Commands that set up this machine, or show what it lacks."""

import typer

app = typer.Typer()


@app.command()
def setup() -> None:
    """Have llama.cpp and Ollama here; nothing is compiled where an Ollama brings its own llama.cpp."""
    from tools.gguf import llamacpp
    from tools.serving import ollama

    llamacpp.set_up()
    ollama.install()


@app.command()
def doctor() -> None:
    """Show what this machine has and lacks, and the command that fixes it."""
    from rich.console import Console

    from tools.core import machine
    from tools.gguf import llamacpp
    from tools.serving import ollama

    programs = {name: llamacpp.find(name) for name in llamacpp.PROGRAMS} | {"ollama": ollama.find()}
    findings = machine.examine(programs, llamacpp.described())
    Console().print(machine.table(findings))
    if any(finding.needed and not finding.found for finding in findings):
        raise typer.Exit(1)
