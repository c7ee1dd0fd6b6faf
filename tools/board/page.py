"""The page: what is where on it, and which part of board.py each component calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from tools import BadInput, Failed
from tools.board import choice
from tools.board.board import Board, Form, Shown
from tools.core import catalog, quote
from tools.gguf import convert
from tools.pipeline import ask

# Seconds between two looks at what goes on.
EVERY = 1.0


def told(function: Callable[..., Any], outputs: int, clear: bool) -> Callable[..., Iterator[Shown]]:
    """What an event calls: `function` on inputs of its own and the form; before its outputs, why it was refused.

    `clear`: whether the reason of an earlier refusal goes away; what goes on by itself leaves it.
    """

    def run(*values: Any) -> Iterator[Shown]:
        own, form = values[: -len(Form._fields)], Form(*values[-len(Form._fields) :])
        try:
            made = function(*own, form)
            for shown in made if isinstance(made, Iterator) else [made]:
                yield one_or_all([gr.update(visible=False) if clear else gr.skip(), *shown])
        except (BadInput, Failed, OSError) as error:
            yield one_or_all([gr.update(value=quote.visible(error), visible=True), *[gr.skip()] * outputs])

    return run


def one_or_all(shown: list[Shown]) -> Shown:
    """Values as Gradio takes them: of one component the value itself."""
    return shown if len(shown) > 1 else shown[0]


def build(board: Board) -> gr.Blocks:
    """The page of a board."""
    words, first = board.words, choice.first()
    opened = Form(first.model, first.method, first.device, "", "", "Q8_0", 1, ask.KITCHEN, "", False)
    commands: dict[str, gr.Textbox] = {}

    def told_here(key: str, lines: int = 1, **options: Any) -> gr.Textbox:
        """A box of plain text that the board fills."""
        return gr.Textbox(label=words[key], lines=lines, interactive=False, elem_id=key, **options)

    def pick(key: str, choices: Sequence[Any], value: str) -> gr.Dropdown:
        """A list to choose from."""
        return gr.Dropdown(list(choices), value=value, label=words[key], elem_id=key, min_width=200)

    def command(key: str) -> gr.Button:
        """A button, and the command that does the same."""
        with gr.Row():
            made = gr.Button(words[key], elem_id=key, scale=1, min_width=140)
            commands[key] = gr.Textbox(
                label=words["command"],
                interactive=False,
                max_lines=4,
                scale=3,
                min_width=200,
                elem_id=f"{key}-command",
                elem_classes="log",
                buttons=["copy"],
            )
        return made

    with gr.Blocks(title="react-recipes", analytics_enabled=False) as page:
        gr.Markdown("# react-recipes")
        with gr.Row():
            state = told_here("state", 2, scale=4)
            stop = gr.Button(words["stop"], elem_id="stop", scale=1, min_width=140)
        notice = told_here("notice", visible=False)
        force = gr.Checkbox(label=words["force"], elem_id="force", container=False)
        with gr.Tab(words["choose"], elem_id="choose", render_children=True):
            with gr.Row():
                model = pick("model", [(each.title, key) for key, each in catalog.models().items()], opened.model)
                method = pick("method", [(each.title, key) for key, each in catalog.methods().items()], opened.method)
                device = pick("device", devices(words), opened.device)
            with gr.Row():
                data = pick("data", board.data_choices(), "")
                own = pick("own", [(words["generated"], "")], "")
            bars = gr.HTML(elem_id="bars")
            plan = command("plan")
            fitting = told_here("fitting", 3)
            head = told_here("head", 6, elem_classes="log")
        with gr.Tab(words["look"], elem_id="look", render_children=True):
            drop = gr.File(label=words["drop"], type="filepath", elem_id="drop", height=140)
            lint = command("lint")
            findings = told_here("findings", 4, max_lines=20, elem_classes="log")
            lengths = gr.HTML(elem_id="lengths")
            stats = command("stats")
        with gr.Tab(words["edit"], elem_id="edit", render_children=True):
            editor = gr.Code(language="yaml", lines=18, max_lines=40, label=words["recipe"], elem_id="recipe")
            checked = told_here("checked", 3, elem_classes="log")
            name = gr.Textbox(label=words["name"], elem_id="name")
            save = command("new")
        with gr.Tab(words["training"], elem_id="training", render_children=True):
            starting = {key: command(key) for key in ("check", "train", "resume")}
            plots = gr.HTML(elem_id="plots")
        with gr.Tab(words["trained"], elem_id="trained", render_children=True):
            quant = pick("quant", convert.QUANTS, opened.quant)
            starting |= {key: command(key) for key in ("gguf", "parity", "ollama")}
            prompt = gr.Textbox(opened.prompt, label=words["prompt"], lines=3, max_lines=8, elem_id="prompt")
            asking = command("ask")
            with gr.Row():
                answers = [told_here(who, 8, max_lines=30, min_width=280) for who in ("base", "tuned")]
            anew = gr.Button(words["anew"], elem_id="anew")
            room = gr.Number(opened.room, label=words["room"], minimum=1, maximum=100, precision=0, elem_id="room")
            playing = command("eval")
            game = told_here("game", 8, max_lines=30)
        log = told_here("log", 6, max_lines=20, elem_classes="log")
        talks, before = gr.State({}), gr.State([])

        form = [model, method, device, data, own, quant, room, prompt, name, force]
        lines = [commands[key] for key in board.commands(opened)]
        everything = [method, own, fitting, bars, head, editor, name, *lines]

        def on(
            listen: Any,
            function: Callable[..., Any],
            inputs: Sequence[Any],
            outputs: Sequence[Any],
            mode: str = "always_last",
        ) -> Any:
            """Have an event call a function of the board, see `told`; once more, where it came again meanwhile."""
            return listen(
                told(function, len(outputs), clear=mode != "always_last"),
                [*inputs, *form],
                [notice, *outputs],
                show_progress="hidden",
                api_visibility="private",
                trigger_mode=mode,
            )

        on(page.load, board.chosen, [], everything)
        for listen in (model.input, method.input, device.input, own.input):
            on(listen, board.chosen, [], everything)
        for listen in (data.input, quant.input, room.input, prompt.input, name.input, force.input):
            on(listen, board.lines, [], lines)
        on(plan.click, partial(board.started, "plan"), [editor], [], "once")
        on(drop.upload, board.dropped, [drop], [drop, data, *lines, findings, lengths], "multiple")
        on(lint.click, board.looked_at, [], [findings, lengths], "once")
        on(stats.click, board.looked_at, [], [findings, lengths], "once")
        on(editor.input, board.typed, [editor], [checked])
        on(save.click, board.saved, [editor], everything, "once")
        for key, button in starting.items():
            on(button.click, partial(board.started, key), [editor], [], "once")
        going = [
            on(asking.click, board.answered, [talks], [talks, *answers], "once"),
            on(playing.click, board.played, [], [game], "once"),
        ]
        stop.click(board.work.stop, cancels=going, api_visibility="private")
        anew.click(lambda: ({}, "", ""), outputs=[talks, *answers], api_visibility="private")
        gr.Timer(EVERY).tick(
            board.seen,
            [before, *form],
            [before, state, log, plots],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )
    return page


def devices(words: Mapping[str, str]) -> list[tuple[str, str]]:
    """The tiers and GPUs to choose from, as the page names them."""
    tiers = [(f"{words['tier']} {key}", f"tier {key}") for key in catalog.tiers()]
    return [*tiers, *((f"{each.title} · {each.usable:.1f} GiB", f"gpu {key}") for key, each in catalog.gpus().items())]
