"""The command line: names, help, exit codes. Heavy modules are imported by the command that needs them."""

import logging
import os
import signal
import sys
import warnings
from typing import Annotated

import click
import typer

from tools import BadInput, Failed, __version__
from tools.cli import chat, data, evaluation, machine, recipes, serving, training
from tools.core import make_variables, quote

ABOUT = "From agent trajectories to a model that answers in Ollama: check, train, convert, prove, serve, play."
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=ABOUT,
)
for stage in (machine, data, recipes, training, serving, evaluation, chat):  # the order in which `--help` shows them
    app.add_typer(stage.app)


def tell_version(asked: bool) -> None:
    """Print the version and exit."""
    if asked:
        print(f"react-recipes {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take what stands before a command."""


def main() -> None:
    """Run the command line. Exit status 2 for bad use, 1 for a failed run, 130 after Ctrl-C, 143 after SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup has it ignored
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    # What the libraries warn of while they are imported is not for those who read our lines.
    logging.disable(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # progress.py says what is downloaded
    warnings.filterwarnings("ignore")
    arguments, target = sys.argv[1:], ""
    try:
        if arguments[:1] == ["--from-make"]:
            target = arguments[1]
            arguments = make_variables.from_make(commands(), target, arguments[2:])
            make_variables.keep_stdout_for_json(target)
        status = app(arguments, standalone_mode=False)
        if status == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        # Who reads us, `| head`, has seen enough; at the exit Python would try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except BadInput as error:
        stop(error, 2)
    except Failed as error:
        stop(error, 1)
    except OSError as error:
        stop(f"{f'{os.fsdecode(error.filename)}: ' if error.filename else ''}{error.strerror or error}", 1)
    except MemoryError:
        stop("too little memory; close other programs, or give this one more", 1)
    except ModuleNotFoundError as error:
        from tools.core import run_folder

        stop(run_folder.missing(error), 1)
    except ImportError as error:
        stop(f"a library cannot be loaded ({error}): too little memory for it, or `make setup` was interrupted", 1)
    except click.exceptions.NoArgsIsHelpError:
        sys.exit(2)  # the help is shown
    except click.UsageError as error:
        stop(make_variables.explain(error, target), 2)
    except click.ClickException as error:
        stop(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        stop("stopped; run the same command again to go on", 130)


def commands() -> click.Group:
    """All commands, with their options."""
    found = typer.main.get_command(app)
    assert isinstance(found, click.Group)
    return found


def stop(why: object, status: int) -> None:
    """Print one line on stderr and exit."""
    print(f"react-recipes: {quote.visible(' '.join(str(why).split()))}", file=sys.stderr)
    sys.exit(status)
