"""What is behind the page: what each part of it shows for what is chosen, and what its buttons do.

What a file or a model wrote goes into text boxes and the editor, which show it as it is; see draw.py for the rest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from tools import BadInput
from tools.board import choice, drafts, draw, runs, talk, uploads
from tools.board.choice import Choice, Command
from tools.board.runs import Work
from tools.core import catalog, quote, run_folder
from tools.pipeline import ask

# What Gradio takes for a component: a value, or an update of it.
Shown = Any
# What a recipe trains on where nothing else is chosen, for the commands that look at data.
SHIPPED = "data/train.jsonl"
# Lines of a recipe's head that say nothing to its reader.
MARKS = ("# hash", "# from")


class Form(NamedTuple):
    """All that a person chose or typed but for the recipe's text, in the order of the page's components."""

    model: str
    method: str
    device: str
    data: str | None
    own: str | None
    quant: str
    room: float | None
    prompt: str
    name: str
    force: bool


@dataclass
class Board:
    """What everybody who opens the page shares: its texts in one language, and the work that goes on."""

    words: Mapping[str, str]
    work: Work

    def choice(self, form: Form) -> Choice:
        """What is chosen. Raises BadInput for a file that the page does not offer."""
        made = Choice(form.model, form.method, form.device, form.data or "", form.own or "")
        if made.data and made.data not in uploads.there():
            raise BadInput(f"{quote.visible(made.data)}: none of the files of data/ and of this board")
        if made.own and made.own not in drafts.there(made.tier):
            raise BadInput(f"{quote.visible(made.own)}: no recipe of this board on tier {made.tier}")
        return made

    def commands(self, form: Form) -> dict[str, Command]:
        """The command of each button, by the button's name."""
        chosen, of_data = self.choice(form), {"data": form.data or SHIPPED}
        prompt, force = "" if form.prompt == ask.KITCHEN else form.prompt, "1" if form.force else ""
        out = choice.shown(uploads.folder() / chosen.tier / f"{form.name}.yaml")
        return {
            "plan": chosen.command("plan"),
            "lint": Command("lint", of_data),
            "stats": Command("stats", of_data),
            "new": Command("new", {"model": form.model, "method": form.method, "tier": chosen.tier, "out": out}),
            "check": chosen.command("check", force=force),
            "train": chosen.command("train", force=force),
            "resume": chosen.command("train", resume="1"),
            "gguf": chosen.command("gguf", quant=form.quant),
            "parity": chosen.command("parity", quant=form.quant),
            "ollama": chosen.command("ollama", quant=form.quant, force=force),
            "ask": chosen.command("ask", quant=form.quant, prompt=prompt),
            "eval": chosen.command("eval", quant=form.quant, rooms=str(int(form.room or 1))),
        }

    def lines(self, form: Form) -> list[Shown]:
        """The commands for a person to copy."""
        return [each.make for each in self.commands(form).values()]

    def chosen(self, form: Form) -> list[Shown]:
        """All that follows from a choice: what else may be chosen, what fits, memory, the recipe, the commands."""
        known = choice.methods(form.model)
        form = form._replace(method=form.method if form.method in known else known[0])
        there = drafts.there(Choice(form.model, form.method, form.device).tier)
        form = form._replace(own=form.own if form.own in there else "")
        form = form._replace(name=Path(form.own).stem if form.own else f"my-{form.model}-{form.method}")
        chosen = self.choice(form)
        try:
            text = chosen.file.read_text(encoding="utf-8")
            head = "\n".join(
                line[2:] for line in text.split("\nbase_model:")[0].splitlines() if not line.startswith(MARKS)
            )
        except BadInput as error:
            text, head = "", str(error)
        fitting = choice.largest(chosen.tier, chosen.gpu).items()
        return [
            gr.update(choices=[(catalog.methods()[each].title, each) for each in known], value=form.method),
            gr.update(choices=[(self.words["generated"], ""), *((each, each) for each in there)], value=form.own),
            "\n".join(
                f"{title}: {', '.join(f'{found.model.title} {found.total:.1f} GiB' for found in plans) or '-'}"
                for title, plans in fitting
            ),
            draw.memory(chosen.plans(), self.words),
            head,
            text,
            form.name,
            *self.lines(form),
        ]

    def data_choices(self) -> list[tuple[str, str]]:
        """The data to choose from, as the page names them."""
        return [(self.words["shipped"], ""), *((each, each) for each in uploads.there())]

    def dropped(self, path: str, form: Form) -> Iterator[list[Shown]]:
        """A file that was dropped: kept, chosen, looked at."""
        form = form._replace(data=choice.shown(uploads.keep(Path(path))))
        chosen = gr.update(choices=self.data_choices(), value=form.data)
        for shown in self.looked_at(form):
            yield [None, chosen, *self.lines(form), *shown]

    def looked_at(self, form: Form) -> Iterator[list[Shown]]:
        """What lint says of the chosen data, then their lengths too."""
        path = self.choice(form).data or SHIPPED
        yield [self.words["reading"], ""]
        said = uploads.lint(path)
        yield [said, ""]
        found = uploads.measure(path)
        yield [said, draw.lengths(found) if found else ""]

    def typed(self, text: str, form: Form) -> Iterator[list[Shown]]:
        """What a check finds in the recipe as it is typed."""
        path = drafts.place(form.name, self.choice(form).tier)
        for found in drafts.check(text, path, self.words["loading"]):
            yield [found or self.words["good"]]

    def saved(self, text: str, form: Form) -> list[Shown]:
        """The recipe saved as the person's own, and chosen."""
        path = drafts.save(text, form.name, self.choice(form))
        return self.chosen(form._replace(own=choice.shown(path)))

    def started(self, name: str, text: str, form: Form) -> list[Shown]:
        """A command started on what is chosen, whose recipe must be saved as it is seen."""
        chosen = self.choice(form)
        if text.strip() != chosen.file.read_text(encoding="utf-8").strip():
            raise BadInput(self.words["unsaved"])
        self.work.start(self.commands(form)[name], chosen.run.folder)
        return []

    def answered(self, talks: talk.Talks, form: Form) -> Iterator[list[Shown]]:
        """The answers of base and tuned model as they grow."""
        for now in talk.answers(self.work, self.choice(form), form.quant, form.prompt, talks):
            yield [now, *(talk.text(now.get(who, [])) for who in ("base", "tuned"))]

    def played(self, form: Form) -> Iterator[list[Shown]]:
        """The tuned model's game as it is played."""
        for turns, end in talk.game(self.work, self.choice(form), form.quant, int(form.room or 1)):
            yield [talk.text(turns) + (f"\n\n[{end}]" if end else "")]

    def seen(self, before: list[object], *values: Any) -> list[Shown]:
        """What goes on now, and the curves of the run that is chosen; what the page has, as `before` says, stays."""
        work, going = self.work, self.work.busy.locked()
        folder = work.folder if going else self.folder(Form(*values))
        found = runs.told(folder, work.began if going else 0.0) if folder else []
        state = [self.words["idle"]]
        if work.command:
            key = "running" if going else "done" if work.status == 0 else "ended"
            state = [f"{self.words[key]}: {work.command.make}"]
        if going:
            state += [runs.progress(found)]
            if program := work.program:
                state += [f"{self.words['memory']} {run_folder.resident_bytes(program.pid) / 2**30:.1f} GiB"]
        log, plots = [work.began, work.written], [str(folder), len(found)]
        titles = {key: self.words[key] for key in ("loss", "tokens_per_second", "device_gib")}
        return [
            [*log, *plots],
            "\n".join(filter(None, state)),
            gr.skip() if log == before[:2] else "\n".join(work.lines),
            gr.skip() if plots == before[2:] else draw.curves(runs.curves(found, titles)),
        ]

    def folder(self, form: Form) -> Path | None:
        """The run's folder of what is chosen; None where no recipe is."""
        try:
            return self.choice(form).run.folder
        except BadInput:
            return None
