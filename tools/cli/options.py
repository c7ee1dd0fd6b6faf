"""The options that several commands share, and how their values are read."""

import math
from typing import Annotated

import click
import typer

from tools import BadInput


def one_quant(text: str) -> str:
    """A quantisation as llama-quantize spells it. Raises BadInput for what is none."""
    from tools.gguf import convert

    if len(text.split()) > 1:
        raise BadInput(f"{text}: one quantisation here; make gguf and make quality take several")
    return convert.check_quant(text)


def as_messages(data: str) -> str:
    """A file of episodes in any format as one of messages; see data.convert."""
    from tools.data import convert

    return convert.as_messages(data) if data else ""


def quants(text: str) -> str:
    """Several quantisations, each as `one_quant`."""
    return " ".join(map(one_quant, text.split()))


def prices(text: str) -> str:
    """Two prices as the option has them. Raises BadInput for what is none."""
    try:
        read, written = map(float, text.split()) if text else (0.0, 0.0)
    except ValueError:
        read = -1.0
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise BadInput(f"{text}: PRICE= (--price) takes two numbers of dollars, such as '0.15 0.60'")
    return text


Recipe = Annotated[str, typer.Argument(help="a recipe by name (smollm2-135m-lora) or path")]
Tuned = Annotated[str, typer.Argument(help="a recipe by name or path; or give --adapter or --model")]
Base = Annotated[str, typer.Option("--base", help="another base model: a folder or a hub name")]
Name = Annotated[str, typer.Option("--name", help="the model's name in Ollama (react-...)")]
TierName = Annotated[str, typer.Option("--tier", help="24gb, 8x80gb ...; by default this machine's")]
GpuName = Annotated[str, typer.Option("--gpu", help="a GPU by name (rtx4090) to take the tier from, with --gpus")]
Set = Annotated[list[str], typer.Option("--set", help="key=value in place of the recipe's; may be repeated")]
Seq = Annotated[int, typer.Option("--seq", min=0, help="sequence length in tokens, planned to fit; 0: the recipe's")]
Data = Annotated[str, typer.Option("--data", help="training data in place of the recipe's, in any format")]
Files = Annotated[list[str], typer.Argument(help="files of episodes, in any format")]
Gpus = Annotated[int, typer.Option(min=0, help="processes on each machine; 0: as many as the tier has devices")]
Nodes = Annotated[int, typer.Option(min=1, help="machines")]
Force = Annotated[bool, typer.Option("--force", help="train in spite of errors found; replace another run's results")]
Replace = Annotated[bool, typer.Option("--force", help="replace what is there already")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Folder = Annotated[
    str,
    typer.Option(
        "--adapter", "--model", help="in place of a recipe: a PEFT adapter's folder or a whole model's, or a hub name"
    ),
]
Imatrix = Annotated[
    bool, typer.Option("--imatrix", help="quantise with an importance matrix computed from the training data")
]
AdapterOnly = Annotated[bool, typer.Option("--adapter-only", help="a GGUF of the adapter alone, without the base")]
Quant = Annotated[str, typer.Option("--quant", callback=one_quant, help="F16, Q8_0, Q4_K_M ...")]
Quants = Annotated[
    str, typer.Option("--quant", callback=quants, help="one or more of llama-quantize's types: 'Q4_K_M Q8_0'")
]
NumCtx = Annotated[
    int, typer.Option("--num-ctx", min=0, help="tokens that the model remembers; 0: chosen by data and memory")
]
Proof = Annotated[
    str,
    typer.Option(
        "--proof", click_type=click.Choice(["weights", "tokens"]), help="what is proven before it gets its name"
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        click_type=click.Choice(["auto", "ollama", "llama-server", "transformers"]),
        help="what answers; auto: Ollama, else llama-server; transformers: the weights as trained, whatever --quant",
    ),
]
Url = Annotated[
    str, typer.Option(help="in place of a recipe: an OpenAI-compatible server's address; its key in OPENAI_API_KEY")
]
Rooms = Annotated[int, typer.Option(min=1, help="number of rooms (tasks) to play")]
NameThere = Annotated[
    str, typer.Option("--name", help="the model's name in Ollama (react-...); with --url: its name there")
]
WorldName = Annotated[
    str, typer.Option(help="what is played: household, household:large, alfworld:valid_unseen, my_env.py:MyWorld ...")
]
Prompting = Annotated[
    str,
    typer.Option(
        click_type=click.Choice(["trained", "zero-shot", "few-shot"]),
        help="how a model is asked that was not tuned: as if it were, or told the form of an answer",
    ),
]
Shots = Annotated[int, typer.Option(min=1, help="episodes of the training set that few-shot shows")]
Temperature = Annotated[float, typer.Option(min=0, help="of the answers; 0: always the likeliest token")]
HeldOut = Annotated[str, typer.Option("--held-out", help="a file of episodes in place of data/test.jsonl")]
