"""catalog x templates -> recipes/: what is planned to fit, written so that a person's own edits are never lost."""

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools import BadInput
from tools.core import catalog, files, run_folder, templates
from tools.core.catalog import Method, Model, Tier
from tools.recipes import index, memory, plan
from tools.recipes.memory import Settings
from tools.recipes.plan import Plan

RECIPES = run_folder.ROOT / "recipes"
# The line that says that a file is ours, and whether it is still as we wrote it.
HASH = re.compile(r"^(?:# |<!-- |  \"hash\": \")hash ([0-9a-f]{16})(?: -->|\",)?$", re.MULTILINE)

# The data that recipes name: our episodes, or where a person's preference pairs lie, which DATA= may say otherwise.
EPISODES, PAIRS = "data/train.jsonl", "data/pairs.jsonl"

# Validation episodes: so many times the tokens of one batch on all devices, since rows do not end alike.
SPARE_VALIDATION = 1.33
# The largest share that validation is given for that.
MOST_VALIDATION = 0.5


def planned() -> Iterator[tuple[Tier, Model, Method, Plan]]:
    """All that fits and that a method writes: a recipe exists for exactly these."""
    for tier in catalog.tiers().values():
        for model in catalog.models().values():
            for method in catalog.methods().values():
                if method.written(model) and (found := plan.choose(model, method, tier)):
                    yield tier, model, method, found


def name(model: Model, method: Method) -> str:
    """The name of a recipe: model and method."""
    return f"{model.key}-{method.key}"


def zero(s: Settings) -> str:
    """The name of the DeepSpeed file of these settings; empty where DeepSpeed is not used."""
    if not s.sharding.startswith("zero"):
        return ""
    return s.sharding + {"none": "", "optimizer": "_offload_optimizer", "parameters": "_offload_all"}[s.offload]


def tier_words(tier: Tier) -> str:
    """A tier in a person's words."""
    if not tier.gpu:
        return f"on a CPU with {tier.memory_gb} GB"
    gpu = catalog.gpus()[tier.gpu].title
    nodes = f"{tier.nodes} machines with " if tier.nodes > 1 else ""
    devices = f"{tier.devices} GPUs" if tier.devices > 1 else "one GPU"
    each = f"{tier.devices} GPUs each" if tier.nodes > 1 else devices
    return f"on {nodes}{each} of {tier.memory_gb} GB ({gpu} and the like)"


def by_hand(tier: Tier, path: str) -> str:
    """The command that trains a recipe without this project, and without accelerate's own default_config.yaml."""
    if tier.world == 1:
        return f"{'' if tier.gpu else 'OMP_NUM_THREADS=$(nproc) '}axolotl train {path} --launcher python"
    return f"accelerate launch --config_file recipes/accelerate/{tier.key}.yaml -m axolotl.cli.train {path}"


def sizes(parts: dict[str, float], least: float = 0.05) -> str:
    """GiB by part, largest first, in words; what is less than `least` is left out."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{what} {value:.1f}" for what, value in ordered if value >= least)


def recipe_text(
    tier: Tier,
    model: Model,
    method: Method,
    found: Plan,
    data: str = "",
    own: Mapping[str, int | float] = {},
) -> str:
    """The text of one recipe, with its hash. `data`: the file it trains on, by default our episodes, or for preference
    pairs where a person's are; `own`: keys with values of its own.
    """
    s, title = found.settings, name(model, method)
    values = catalog.training().model_dump() | {
        "save_steps": 0,
        "num_epochs": method.epochs,
        "learning_rate": index.number(method.rate(model)),
        "lora_dropout": method.dropout,
    }
    values["val_set_size"] = validation(found)
    # What a tier changes is made for learning from episodes.
    changed = {key: value for key, value in tier.changes.items() if key != "learning_rate" or not method.rl} | dict(own)
    values |= {key: index.number(value) if isinstance(value, float) else value for key, value in changed.items()}
    changes, disk = plan.advice(found)[:2], dict(plan.disk(found))
    text = templates.template("axolotl/recipe.yaml.j2").render(
        values,
        model=model,
        method=method,
        plan=found,
        s=s,
        data=data or (PAIRS if s.pairs else EPISODES),
        before=f"{model.key}-{method.after}" if method.after else "",
        name=title,
        world=tier.world,
        update_tokens=f"{round(found.update_tokens, -2):,.0f}",
        precision=tier.precision,
        tier_words=tier_words(tier),
        parts=sizes(dict(found.parts)),
        host=sizes(dict(found.host), 1.0) if s.offload != "none" or s.activation_offloading else "",
        rows=f"packed rows of {s.sequence_len}" if s.packed else f"{s.row}s",
        spread=spread(found),
        offloading=plan.OFFLOADING,
        disk=disk,
        disk_parts=sizes(disk),
        # What plays is found in the project's root.
        by_hand=("PYTHONPATH=. " if s.group else "") + by_hand(tier, f"recipes/{tier.key}/{title}.yaml"),
        short="; ".join(f"{each.words} (saves {each.won:.1f} GiB)" for each in changes) or "a smaller model",
        evaluates=bool(values["val_set_size"]),
        deepspeed=zero(s),
        chat=chat(model.family),
        careful=next((each.key for each in catalog.methods().values() if each.variant_of == method.key), ""),
    )
    return sealed(text)


def spread(found: Plan) -> str:
    """How many times over an update's micro batches are made at once, in words; empty for one device."""
    groups, share = plan.replicas(found.settings, found.tier), found.settings.context_parallel
    if share == 1:
        return f" x {groups} devices" if groups > 1 else ""
    return f" x {groups} group{'s' if groups > 1 else ''} of {share} devices"


def validation(found: Plan) -> float:
    """The share of the episodes that is kept for validation: so many that, packed, they fill a batch on each device.

    Axolotl 0.19 leaves out what does not, and where that is all, there is no loss by which the best checkpoint is
    chosen (core/trainers/base.py, drop_last). The shipped episodes fill the batch with a third to spare.
    """
    s, known, share = found.settings, catalog.episodes(), catalog.training().val_set_size
    if s.evaluation == 0:
        return 0
    if s.packed:
        batch = s.micro_batch * plan.replicas(s, found.tier) * plan.row_tokens(s)
        filling = math.ceil(100 * SPARE_VALIDATION * batch / (known.count * known.mean)) / 100
        # Rows so long are for more episodes than the shipped ones.
        share = max(share, filling) if filling <= MOST_VALIDATION else share
    return share


def chat(family: str) -> str:
    """The chat template that is trained and served in place of the model's own; empty where its own is as it must be.

    It must say the same at every length of a talk and on every day, or what is served is not what was trained.
    The word "tools" in it, be it in a comment, makes Ollama (0.34) take it before its twin in Go.
    """
    path = templates.TEMPLATES / "chat" / f"{family}.jinja"
    return path.read_text(encoding="utf-8").rstrip() if path.is_file() else ""


def generated() -> dict[str, str]:
    """All generated files of recipes/: name -> text."""
    plans = list(planned())
    made = {where: sealed(text) for where, text in index.pages(plans).items()}
    for tier, model, method, found in plans:
        made[f"{tier.key}/{name(model, method)}.yaml"] = recipe_text(tier, model, method, found)
    for stage, offload in (
        (1, ""),
        (2, ""),
        (2, "_offload_optimizer"),
        (3, ""),
        (3, "_offload_optimizer"),
        (3, "_offload_all"),
    ):
        text = templates.template("deepspeed/zero.json.j2").render(
            stage=stage,
            optimizer_offload=bool(offload),
            parameter_offload=offload == "_offload_all",
            bucket=memory.BUCKET,
        )
        made[f"deepspeed/zero{stage}{offload}.json"] = text
    for tier in catalog.tiers().values():
        if tier.world > 1:
            text = templates.template("accelerate/tier.yaml.j2").render(tier=tier)
            made[f"accelerate/{tier.key}.yaml"] = sealed(text)
    return made


def sealed(text: str) -> str:
    """A generated text with the line that says that it is ours: after the comment at its head."""
    mark = digest(text)
    if text.startswith("<"):
        first, _, rest = text.partition("\n")
        return f"{first}\n<!-- hash {mark} -->\n{rest}"
    lines = text.splitlines(keepends=True)
    head = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join([*lines[:head], f"# hash {mark}\n", *lines[head:]])


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ours(text: str) -> bool:
    """Whether a text is as we wrote it: its hash is there, and is that of the rest."""
    found = HASH.search(text)
    if not found:
        return False
    rest = text[: found.start()] + text[found.end() + 1 :]
    return digest(rest) == found[1]


def text_of(path: Path) -> str:
    """The text of a file in recipes/, whatever a person put there."""
    return path.read_text(encoding="utf-8", errors="replace")


def edited(path: Path) -> bool:
    """Whether a generated file was edited in place: it bears our hash, and the hash is not that of its text."""
    text = text_of(path)
    return HASH.search(text) is not None and not ours(text)


def edit(path: Path, made: str) -> int:
    """The line (from 1) at which an edited file first differs from what is generated."""
    lines = itertools.zip_longest(text_of(path).splitlines(), made.splitlines())
    return next((number for number, (there, ours) in enumerate(lines, 1) if there != ours), 1)


def refuse_edited(made: dict[str, str]) -> None:
    """Raise BadInput where a person's own text stands under a generated name. `made`: what is generated, by name.

    It does where a file bears our hash and its text does not fit it, or bears none and is not what is generated.
    """
    for path in sorted(each for each in RECIPES.rglob("*") if each.is_file()):
        text = made.get(str(path.relative_to(RECIPES)))
        sealed = path.suffix in (".yaml", ".html", ".md") and edited(path)
        unsealed = text is not None and not HASH.search(there := text_of(path)) and there != text
        if sealed or unsealed:
            raise BadInput(
                f"{path.relative_to(run_folder.ROOT)}:{edit(path, text or '')}: generated, and edited in place; copy "
                "it elsewhere (make train RECIPE=path/to/my.yaml takes it), then `git checkout` the original; FORCE=1 "
                "writes all such files anew"
            )


def write(force: bool = False) -> dict[str, int]:
    """Write recipes/ anew; how many files were written, left as they were, and removed.

    Touched are only files that we wrote and nobody edited. Raises BadInput as `refuse_edited`, before anything is
    written, unless `force`.
    """
    made = generated()
    if not force:
        refuse_edited(made)
    there = {str(path.relative_to(RECIPES)): path for path in RECIPES.rglob("*") if path.is_file()}
    counts = {"written": 0, "unchanged": 0, "removed": 0}
    for where, text in made.items():
        if where in there and text_of(there[where]) == text:
            counts["unchanged"] += 1
            continue
        files.write(RECIPES / where, text.encode())
        counts["written"] += 1
    for where, path in there.items():
        if where not in made and HASH.search(text_of(path)):
            files.remove(path)
            counts["removed"] += 1
    return counts
