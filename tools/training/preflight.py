"""All that can go wrong with a recipe and its data, found before the first GPU second."""

import netrc
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import urlsplit

import orjson
import psutil

from tools import BadInput
from tools.core import catalog, chat_template, files, machine, preference, quote, run_folder, trajectory
from tools.core.catalog import Model
from tools.core.finding import Finding
from tools.core.preference import Pair
from tools.core.trajectory import Episode
from tools.recipes import plan, render, schema
from tools.recipes.plan import Change, Plan
from tools.recipes.recipe import RECIPES, Recipe, names, read_recipe
from tools.training import data_checks, game_checks, model_checks, pair_checks, pair_tokens, recipe_checks, run_axolotl
from tools.training.pair_tokens import PairTokens
from tools.training.tokens import IGNORED, Tokenised, tokenise

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

# How Axolotl calls the chat template that comes with the tokenizer; a longer name says what to take if there is none.
TOKENIZERS_OWN = "tokenizer_default"
# Below this share of trained tokens most of a GPU's time goes to what is read only.
LITTLE_TRAINED = 0.05


@dataclass(frozen=True)
class Report:
    """What a check found and measured: tokens in all and trained, the longest episode, the first one's mask.

    `what`: what its data are; of pairs, `episodes` counts them, and both conversations of each count as tokens. Of
    rooms to be played, the tokens are those of the episodes in the data, and none is trained.
    """

    findings: list[Finding]
    episodes: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    sequence_len: int = 0
    preview: "Text | None" = None
    what: Literal["episodes", "pairs", "rooms"] = "episodes"

    @property
    def errors(self) -> list[Finding]:
        """What stops a training."""
        return [each for each in self.findings if each.level == "error"]


class Validated(TypedDict):
    """What a check without data says of a recipe, named by tier and name; `findings`: in words."""

    recipe: str
    ok: bool
    findings: list[str]


@dataclass(frozen=True)
class Machine:
    """What a training runs on: its tier's key, GPUs, free memory and disk in GiB, whether it may push and log.

    `token`: the model hub's is here; `wandb`: the key of Weights & Biases is.
    """

    tier: str
    devices: list[machine.Device]
    memory_gib: float
    disk_gib: float
    token: bool = field(repr=False)
    wandb: bool = field(default=False, repr=False)


def this_machine() -> Machine:
    """The machine that this runs on."""
    found, place = machine.devices(), run_folder.outputs()
    while not place.exists():
        place = place.parent
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Machine(
        tier=machine.tier(found),
        devices=found,
        memory_gib=psutil.virtual_memory().available / 2**30,
        disk_gib=shutil.disk_usage(place).free / 2**30,
        token=bool(os.environ.get("HF_TOKEN")) or (home / "token").exists(),
        wandb=bool(os.environ.get("WANDB_API_KEY")) or wandb_login(),
    )


def wandb_login() -> bool:
    """Whether `wandb login` left its key, in the file of the network's logins."""
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return netrc.netrc(file).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def check(recipe: Recipe, base: Path | str, machine: Machine | None = None) -> Report:
    """Check a recipe and its data with the parts that train: Axolotl's schema, its tokenising, its loss mask.

    `base`: the base model's folder, or its hub name where it is not here yet: then the tokens are left for training.
    Raises BadInput for what cannot be read at all: data that is not a ReAct episode, a recipe that Axolotl refuses.
    """
    rows = read(recipe)
    if isinstance(base, Path) and with_its_own_template(recipe):
        # Before Axolotl, which takes 10 s to load.
        chat_template.check_templates(chat_template.written(base), str(base), {})
    findings = deprecated(recipe)
    if recipe.settings.get("rl") == "grpo":
        return check_games(recipe, base, machine or this_machine(), rows, findings)
    if recipe.settings.get("rl"):
        return check_pairs(recipe, base, machine or this_machine(), rows, findings)
    episodes: list[Episode] = rows
    tokenised = tokens_of(recipe, base, episodes) if isinstance(base, Path) else []
    findings += quick(recipe, machine or this_machine(), [len(ids) for ids, _ in tokenised])
    findings += model_checks.findings(recipe, base)
    findings += data_checks.updates(recipe, data_checks.lengths_of(episodes, tokenised))
    findings += data_checks.repeated(recipe, episodes)
    if not isinstance(base, Path):
        return Report(findings, episodes=len(episodes), sequence_len=sequence_len(recipe))
    return tokens(recipe, base, episodes, tokenised, findings)


def check_settings(recipe: Recipe, machine: Machine | None = None) -> list[Finding]:
    """Check a recipe without its data and its base: by Axolotl's schema and by `quick`. Raises BadInput as `check`."""
    return [*deprecated(recipe), *quick(recipe, machine or this_machine())]


def deprecated(recipe: Recipe) -> list[Finding]:
    """What Axolotl's schema says of keys that will go. Raises BadInput, with file:line, for what it refuses."""
    return [
        Finding("warning", text, recipe.at(schema.key_named_in(recipe, text)), "change the key that it names")
        for text in schema.validate(recipe)
    ]


def check_pairs(
    recipe: Recipe, base: Path | str, machine: Machine, pairs: list[Pair], findings: list[Finding]
) -> Report:
    """The rest of a check of a recipe that learns from preference pairs; see `check`."""
    data, length = recipe.dataset["path"], sequence_len(recipe)
    if not isinstance(base, Path):
        findings += [*quick(recipe, machine), *model_checks.findings(recipe, base)]
        return Report(findings, episodes=len(pairs), sequence_len=length, what="pairs")
    try:
        made = pair_tokens.tokenise(base, recipe.dataset, pairs, recipe.settings)
    except BadInput as error:
        raise BadInput(f"{recipe.at('datasets', 0, 'type')}: {error}") from error
    # Each pair as the longer of its two conversations, trained on the answer.
    whole = [(each.prompt + side, [IGNORED] * len(each.prompt) + side) for each in made for side in [longer(each)]]
    tokenizer = chat_template.tokenizer(base, trial=with_its_own_template(recipe))
    findings += quick(recipe, machine, [each.longest for each in made])
    findings += model_checks.findings(recipe, base)
    findings += pair_checks.updates(recipe, made, length)
    findings += pair_checks.served(data, tokenizer, pairs, made)
    talks = [{"messages": [*pair["prompt"], *pair["chosen"], *pair["rejected"]]} for pair in pairs]
    findings += data_checks.control_tokens(data, tokenizer, talks)
    findings += data_checks.too_long(recipe, data, whole, length, "pairs")
    findings += data_checks.new_tokens(recipe, base, tokenizer)
    trained = sum(len(each.chosen) + len(each.rejected) for each in made)
    first = made[0]
    return Report(
        findings,
        episodes=len(pairs),
        tokens=trained + 2 * sum(len(each.prompt) for each in made),
        trained=trained,
        longest=max(each.longest for each in made),
        sequence_len=length,
        preview=preview(tokenizer, first.prompt + first.chosen, [IGNORED] * len(first.prompt) + first.chosen),
        what="pairs",
    )


def check_games(
    recipe: Recipe, base: Path | str, machine: Machine, episodes: list[Episode], findings: list[Finding]
) -> Report:
    """The rest of a check of a recipe whose model plays games to learn from them; see `check`."""
    data, length = recipe.dataset["path"], sequence_len(recipe)
    game_checks.check_rooms(recipe.data, episodes)
    findings += game_checks.updates(recipe, len(episodes))
    if not isinstance(base, Path):
        findings += [*quick(recipe, machine), *model_checks.findings(recipe, base)]
        return Report(findings, episodes=len(episodes), sequence_len=length, what="rooms")
    tokenizer = chat_template.tokenizer(base, trial=with_its_own_template(recipe))
    lengths = game_checks.lengths(tokenizer, episodes)
    findings += quick(recipe, machine, lengths)
    findings += model_checks.findings(recipe, base)
    findings += game_checks.too_long(recipe, lengths, length)
    findings += data_checks.control_tokens(data, tokenizer, episodes)
    findings += data_checks.new_tokens(recipe, base, tokenizer)
    total, longest = sum(lengths), max(lengths)
    return Report(findings, len(episodes), total, longest=longest, sequence_len=length, what="rooms")


def longer(pair: PairTokens) -> list[int]:
    """The longer of a pair's two answers."""
    return max(pair.chosen, pair.rejected, key=len)


def read(recipe: Recipe) -> list[dict[str, Any]]:
    """The episodes that a recipe trains on or whose rooms its model plays, or the preference pairs.

    Raises BadInput, with file:line, for a path with ~, what is no episode or no pair, and an `rl` that is not checked
    here, or whose games we do not play.
    """
    for found in recipe_checks.home(recipe):
        raise BadInput(f"{found.where}: {found.what}; {found.fix}")
    way = recipe.settings.get("rl")
    known = way in {method.rl for method in catalog.methods().values()}
    if way and (not known or (way == "grpo" and not game_checks.ours(recipe))):
        raise BadInput(f"{recipe.at('rl')}: rl: {way}: nothing here checks its data; `axolotl train` takes the recipe")
    return list(preference.read(recipe.data) if way == "dpo" else trajectory.read(recipe.data))


def sequence_len(recipe: Recipe) -> int:
    """The longest episode in tokens that is trained; where the recipe says nothing, as Axolotl 0.19 has it."""
    return int(recipe.settings.get("sequence_len") or 512)


def tokens_of(recipe: Recipe, base: Path, episodes: list[Episode]) -> list[Tokenised]:
    """The tokens and labels that Axolotl itself makes of each episode. Raises BadInput when it cannot make them."""
    try:
        return tokenise(base, recipe.dataset, episodes, sequence_len(recipe), recipe.settings)
    except BadInput:
        raise
    except Exception as error:  # Each of its ways to read data fails in its own way on data of another kind.
        kind = recipe.dataset.get("type")
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        fix = "type: chat_template reads messages" if kind != "chat_template" else "see the entry's keys"
        where = recipe.at("datasets", 0, "type")
        raise BadInput(f"{where}: type: {kind}: Axolotl makes no tokens of these episodes ({why}); {fix}") from error


def quick(recipe: Recipe, machine: Machine, lengths: Sequence[int] = ()) -> list[Finding]:
    """What can be found without Axolotl and the base model: memory, disk, rates, devices, gates, checkpoints.

    `lengths`: tokens of each episode, where they are known.
    """
    model = catalog.model_of(str(recipe.settings["base_model"]))
    findings = [
        *recipe_checks.findings(recipe, model),
        *batch(recipe, lengths),
        *precision(recipe, machine),
        *gate(recipe, model, machine),
        *hub(recipe, machine),
        *wandb(recipe, machine),
        *zero3(recipe),
        *stopped_build(recipe),
        *leftovers(recipe),
        *edited(recipe),
    ]
    if model:
        planned = plan.of(model, recipe.tier, plan.from_recipe(recipe.settings, recipe.tier))
        findings += room(recipe, planned, machine, lengths)
    else:
        say = "its memory is not predicted: the catalog does not know this base model"
        findings.append(Finding("advice", say, recipe.at("base_model"), "make add-model HUB=... adds it"))
    return findings


def batch(recipe: Recipe, lengths: Sequence[int] = ()) -> Iterator[Finding]:
    """An update of far more or fewer tokens than the method's: it was made for other devices, or other data.

    `lengths`: tokens of each episode, where they are known; else they are taken to be as the shipped ones.
    """
    s, world = plan.from_recipe(recipe.settings, recipe.tier), recipe.tier.world
    wanted = catalog.methods()[recipe_checks.method_of(recipe.settings)].update_tokens
    rows = s.micro_batch * s.accumulation * plan.replicas(s, recipe.tier)
    mean = sum(lengths) / len(lengths) if lengths else catalog.episodes().mean
    tokens = rows * (plan.row_tokens(s) if s.packed else s.sides * min(mean, s.sequence_len))
    if recipe.tier.gpu and not wanted / plan.MOST_TOKENS <= tokens <= wanted * plan.MOST_TOKENS:
        devices = f" on {world} devices" if world > 1 else ""
        kind = f"packed rows of {s.sequence_len}" if s.packed else f"{s.row}s"
        what = f"{rows} {kind}{devices} are about {tokens:,.0f} tokens an update; the method has {wanted:,}"
        where = recipe.at("gradient_accumulation_steps")
        yield Finding("advice", what, where, "change it, or the learning rate with it")


def precision(recipe: Recipe, machine: Machine) -> Iterator[Finding]:
    """bf16 or FlashAttention on a device that has neither, and a GPU's recipe on a machine without one."""
    flash = "flash" in str(recipe.settings.get("attn_implementation") or "")
    if not machine.devices:
        if flash or recipe.settings.get("load_in_4bit") or recipe.settings.get("load_in_8bit"):
            yield Finding(
                "error",
                "made for a GPU, and this machine has none",
                recipe.at("attn_implementation"),
                "TIER=cpu, or a machine with a GPU",
            )
        return
    old = [each.name for each in machine.devices if not each.bf16]
    if old and recipe.settings.get("bf16") not in (None, False, "auto"):
        yield Finding(
            "error",
            f"bf16 on a {old[0]}, which has none",
            recipe.at("bf16"),
            "bf16: false and fp16: true; TIER=16gb-turing has it so",
        )
    if old and flash:
        yield Finding(
            "error",
            f"FlashAttention 2 on a {old[0]}, for which it is not made",
            recipe.at("attn_implementation"),
            "attn_implementation: sdpa",
        )


def gate(recipe: Recipe, model: Model | None, machine: Machine) -> Iterator[Finding]:
    """A gated model without a token for the hub."""
    if (
        model
        and model.gated
        and not machine.token
        and not Path(run_folder.placed(str(recipe.settings["base_model"]))).is_dir()
    ):
        fix = f"accept its licence on its page on the hub, then `hf auth login` or HF_TOKEN=... ({model.hub})"
        yield Finding("error", f"{model.title} is gated and no hub token is here", recipe.at("base_model"), fix)


def hub(recipe: Recipe, machine: Machine) -> Iterator[Finding]:
    """A model to push to the hub without a token for it: the training stops as it begins."""
    if recipe.settings.get("hub_model_id") and not machine.token:
        what = "hub_model_id pushes to the model hub, and no hub token is here"
        yield Finding("error", what, recipe.at("hub_model_id"), "`hf auth login` or HF_TOKEN=..., or remove the key")


def wandb(recipe: Recipe, machine: Machine) -> Iterator[Finding]:
    """Weights & Biases: offline unless the recipe or the environment asks for more, and then with a login."""
    settings = recipe.settings
    if not settings.get("wandb_project") and not settings.get("use_wandb"):
        return
    mode = settings.get("wandb_mode") or run_axolotl.ENVIRONMENT["WANDB_MODE"]
    where = recipe.at("wandb_mode" if settings.get("wandb_mode") else "wandb_project")
    if mode == "offline":
        what = "Weights & Biases is offline: the log stays on this machine, in wandb/"
        yield Finding("advice", what, where, "`wandb sync` sends it later; wandb_mode: online sends it as it trains")
    elif mode != "disabled" and not machine.wandb:
        what = f"wandb_mode {mode}, and no login of Weights & Biases is here"
        yield Finding("error", what, where, "`wandb login` or WANDB_API_KEY=..., or wandb_mode: offline")


def zero3(recipe: Recipe) -> Iterator[Finding]:
    """What stops a training under ZeRO-3: weights loaded in 32 bits, an adapter recomputed without reentrance.

    Axolotl 0.19 loads the model before "auto" in the DeepSpeed file is known, and DeepSpeed 0.18.9 then spreads it in
    32 bits (partition_parameters.py, `_set_dtype`). An adapter has 16 by then, so the gather after the first update
    fails; without one the weights take twice their memory. Recomputing: see `memory.Settings.reentrant`.
    """
    s = recipe.settings
    if recipe.deepspeed("zero_optimization", "stage") != 3:
        return
    file = str(s["deepspeed"])
    if s.get("bf16") and recipe.deepspeed("bf16", "enabled") is not True:
        yield Finding(
            "error",
            f"ZeRO-3 would load the weights in 32 bits: bf16 is not true in {file}",
            recipe.at("deepspeed"),
            '"bf16": {"enabled": true} in that file, or deepspeed: recipes/deepspeed/zero3.json',
        )
    how = s.get("gradient_checkpointing_kwargs") or {}
    if s.get("adapter") and s.get("gradient_checkpointing") and how.get("use_reentrant") is False:
        yield Finding(
            "error",
            "an adapter under ZeRO-3 stops in the first backward pass (CheckpointError)",
            recipe.at("gradient_checkpointing_kwargs", "use_reentrant"),
            "gradient_checkpointing_kwargs: {use_reentrant: true}",
        )


def stopped_build(recipe: Recipe) -> Iterator[Finding]:
    """A lock of a build of DeepSpeed's extensions that was killed: every later training waits for it without a word.

    Where torch builds them, see torch/utils/cpp_extension.py, `_get_build_directory`; its FileBaton waits for ever.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(home, "torch_extensions"))
    for lock in sorted(place.rglob("lock")) if recipe.settings.get("deepspeed") else ():
        what = f"a build of DeepSpeed's {lock.parent.name} was stopped, or runs now: training would wait for it"
        yield Finding("warning", what, recipe.at("deepspeed"), f"where no other training runs: rm {lock}")


def edited(recipe: Recipe) -> Iterator[Finding]:
    """A recipe of recipes/ that a person edited there, where `make recipes` wants its own."""
    if recipe.path.resolve().is_relative_to(render.RECIPES) and render.edited(recipe.path):
        fix = "copy it elsewhere and `git checkout` the original; RECIPE=path/to/my.yaml takes the copy"
        yield Finding("advice", "generated, and edited in place: make recipes will stop at it", f"{recipe.path}:1", fix)


def leftovers(recipe: Recipe) -> Iterator[Finding]:
    """Checkpoints in the run's folder that another recipe, other data or another base wrote."""
    begun = recipe.run.checkpoints / "inputs.json"
    if not begun.exists():
        return
    inputs = orjson.loads(begun.read_bytes())
    now = {"recipe": recipe.sha256, "data": files.sha256(recipe.data)}
    differ = [what for what, digest in now.items() if inputs.get(what) != digest]
    if differ and any(begun.parent.glob("checkpoint-*")):
        fix = "make train FORCE=1 starts anew and removes them; a copy of the recipe trains beside them"
        what = f"the checkpoints in {begun.parent} are of another {' and '.join(differ)}"
        yield Finding("warning", what, recipe.at("output_dir"), fix)


def room(recipe: Recipe, found: Plan, machine: Machine, lengths: Sequence[int] = ()) -> Iterator[Finding]:
    """Too little memory on the devices or in the machine (on a CPU they are one), too little disk.

    `lengths`: tokens of each episode, to say how many a shorter sequence drops.
    """
    # Where this machine is not the one, what the tier's devices have: its own memory is no GPU's.
    elsewhere = found.tier.usable_gib if found.tier.gpu else machine.memory_gib
    free = min((each.gib for each in machine.devices), default=elsewhere)
    take = f"takes {found.total:.1f} GiB on each device by prediction"
    first = plan.advice(found)[:2]
    fix = "; ".join(remedy(each, lengths) for each in first) or "a smaller model"
    where = recipe.at("micro_batch_size")
    if found.total > free:
        yield Finding("error", f"{take}; {free:.1f} are there", where, fix)
    elif found.total > free * (1 - plan.SPARE):
        yield Finding("warning", f"{take}; of {free:.1f} less than {plan.SPARE:.0%} stay free", where, fix)
    host = sum(found.host.values())
    if host > machine.memory_gib and machine.devices:
        yield Finding(
            "error",
            f"takes {host:.0f} GiB of the machine's own memory; {machine.memory_gib:.0f} are free",
            recipe.at("deepspeed"),
            "close other programs; a tier without offload",
        )
    disk = sum(plan.disk(found).values())
    if disk > machine.disk_gib:
        yield Finding(
            "error",
            f"takes {disk:.0f} GiB of disk to the GGUF; {machine.disk_gib:.0f} are free",
            recipe.at("output_dir"),
            "free some; REACT_RECIPES_OUTPUTS names another disk",
        )


def remedy(change: Change, lengths: Sequence[int]) -> str:
    """A change that takes less memory, in words: its keys, what it wins, and the episodes that it cuts."""
    most = change.keys.get("sequence_len", 0)
    cut = sum(length > most for length in lengths) / len(lengths) if most and lengths else 0
    cuts = f" and is too short for {cut:.1%} of the episodes" if cut else ""
    return f"{change.words} ({keys(change.keys)}) wins {change.won:.1f} GiB{cuts}"


def keys(changes: Mapping[str, object]) -> str:
    """Keys and values as they stand in a recipe, on one line."""
    return ", ".join(
        f"{key}: {value if isinstance(value, str) else orjson.dumps(value).decode()}" for key, value in changes.items()
    )


def tokens(
    recipe: Recipe,
    base: Path,
    episodes: list[Episode],
    tokenised: list[Tokenised],
    findings: list[Finding],
) -> Report:
    """The rest of a check, on the tokens that Axolotl itself made of the data: lengths, mask, template, end token."""
    data, length = recipe.dataset["path"], sequence_len(recipe)
    tokenizer = chat_template.tokenizer(base, trial=with_its_own_template(recipe))
    found = [*findings, *data_checks.flags(recipe, episodes)]
    if not any(each.level == "error" for each in found[len(findings) :]):
        found += data_checks.mask(data, tokenizer, episodes, tokenised)
    found += data_checks.control_tokens(data, tokenizer, episodes)
    found += data_checks.too_long(recipe, data, tokenised, length)
    found += data_checks.new_tokens(recipe, base, tokenizer)
    found += data_checks.end_tokens(recipe, tokenizer, tokenised)
    total, trained = (
        sum(len(ids) for ids, _ in tokenised),
        sum(label != IGNORED for _, made in tokenised for label in made),
    )
    if 0 < trained < LITTLE_TRAINED * total:
        found.append(
            Finding(
                "advice",
                f"only {trained / total:.1%} of the tokens are trained",
                str(data),
                "shorter observations, or a shorter system prompt",
            )
        )
    return Report(
        findings=found,
        episodes=len(episodes),
        tokens=total,
        trained=trained,
        longest=max(len(ids) for ids, _ in tokenised),
        sequence_len=length,
        preview=preview(tokenizer, *tokenised[0]),
    )


def with_its_own_template(recipe: Recipe) -> bool:
    """Whether a recipe trains with the chat template that the base's tokenizer has."""
    named = recipe.dataset.get("chat_template") or recipe.settings.get("chat_template") or TOKENIZERS_OWN
    return str(named).startswith(TOKENIZERS_OWN)


def preview(tokenizer: "PreTrainedTokenizerBase", ids: list[int], labels: list[int]) -> "Text":
    """One episode as the model sees it: trained tokens bold green, all others dim."""
    from rich.text import Text

    text = Text()
    for token, label in zip(ids, labels, strict=True):
        said = quote.visible(tokenizer.decode([token]), keep="\n\t")
        text.append(said, style="dim" if label == IGNORED else "bold green")
    return text


def table(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines for the screen, the gravest first."""
    order = ("error", "warning", "advice")
    ranked = sorted(findings, key=lambda each: order.index(each.level))
    return [f"{each.level}: {each.where}: {each.what}. {sentence(each.fix)}" for each in ranked]


def sentence(fix: str) -> str:
    """A way to fix something with a capital letter, unless it begins with a key to copy."""
    return fix if re.match(r"\w+: ", fix) else fix[:1].upper() + fix[1:]


def show(found: Report) -> None:
    """Print a check's preview, its figures and its findings, gravest last, where the eye is."""
    from rich.console import Console

    if found.preview:
        Console().print(found.preview)
        print(
            f"check: {found.episodes} {found.what}, {found.tokens} tokens, {found.trained / found.tokens:.0%} of them "
            f"trained (green above), the longest {found.longest} of {found.sequence_len}"
        )
    if found.what == "rooms" and found.longest:
        print(
            f"check: {found.episodes} rooms to play; the longest episode in one has {found.longest} tokens of "
            f"{found.sequence_len}"
        )
    show_findings(found.findings)


def show_findings(findings: Sequence[Finding]) -> None:
    """Print findings, gravest last."""
    for line in table(findings):
        print(quote.visible(line))


def all_recipes() -> Iterator[Validated]:
    """Every recipe held against Axolotl's schema under its tier: a line each, in the order of the files, on all cores.

    "ok", or what is wrong; Axolotl is imported once, and the processes are forked from it.
    """
    import multiprocessing

    paths = [RECIPES / tier / f"{name}.yaml" for tier in catalog.tiers() for name in names(tier)]
    schema.schema(read_recipe(paths[0]))
    with multiprocessing.get_context("fork").Pool(machine.cores()) as pool:
        yield from pool.imap(validated, paths, chunksize=16)


def validated(path: Path) -> Validated:
    """One recipe held against Axolotl's schema and what we check of every recipe."""
    name = f"{path.parent.name}/{path.stem}"
    try:
        asked = read_recipe(path)
        found = schema.validate(asked)
    except BadInput as error:
        return {"recipe": name, "ok": False, "findings": [str(error)]}
    model = catalog.model_of(str(asked.settings["base_model"]))
    found += [each.what for each in recipe_checks.findings(asked, model)]
    return {"recipe": name, "ok": not found, "findings": found}


def as_json(report: Report) -> dict[str, object]:
    """A report for machines."""
    values = {key: value for key, value in vars(report).items() if key not in ("preview", "findings")}
    return values | {"ok": not report.errors, "findings": [asdict(each) for each in report.findings]}
