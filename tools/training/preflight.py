"""All that can go wrong with a recipe and its data, found before the first GPU second."""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import orjson
import psutil

from tools import BadInput
from tools.core import catalog, chat_template, files, machine, quote, run_folder, trajectory
from tools.core.catalog import Model
from tools.core.finding import Finding
from tools.core.trajectory import Episode
from tools.recipes import plan, render, schema
from tools.recipes.plan import Change, Plan
from tools.recipes.recipe import RECIPES, Recipe, names, read_recipe
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
    """What a check found and measured: tokens in all and trained, the longest episode, the first one's mask."""

    findings: list[Finding]
    episodes: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    sequence_len: int = 0
    preview: "Text | None" = None

    @property
    def errors(self) -> list[Finding]:
        """What stops a training."""
        return [each for each in self.findings if each.level == "error"]


class Validated(TypedDict):
    """What Axolotl's schema says of a recipe, named by tier and name; `findings`: why not, or what will go."""

    recipe: str
    ok: bool
    findings: list[str]


@dataclass(frozen=True)
class Machine:
    """What a training runs on: its tier's key, GPUs, free memory and disk in GiB, and whether a hub token is there."""

    tier: str
    devices: list[machine.Device]
    memory_gib: float
    disk_gib: float
    token: bool = field(repr=False)


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
    )


def check(recipe: Recipe, base: Path | str, machine: Machine | None = None) -> Report:
    """Check a recipe and its data with the parts that train: Axolotl's schema, its tokenising, its loss mask.

    `base`: the base model's folder, or its hub name where it is not here yet: then the tokens are left for training.
    Raises BadInput for what cannot be read at all: data that is not a ReAct episode, a recipe that Axolotl refuses.
    """
    episodes = read(recipe)
    if isinstance(base, Path) and with_its_own_template(recipe):
        # Before Axolotl, which takes 10 s to load.
        chat_template.check_templates(chat_template.written(base), str(base), {})
    findings = [
        Finding("warning", text, recipe.at(schema.key_named_in(recipe, text)), "use the key that it names")
        for text in schema.validate(recipe)
    ]
    tokenised = tokens_of(recipe, base, episodes) if isinstance(base, Path) else []
    findings += quick(recipe, machine or this_machine(), [len(ids) for ids, _ in tokenised])
    findings += repeated(recipe, episodes)
    if not isinstance(base, Path):
        return Report(findings, episodes=len(episodes), sequence_len=sequence_len(recipe))
    return tokens(recipe, base, episodes, tokenised, findings)


def read(recipe: Recipe) -> list[Episode]:
    """The episodes that a recipe trains on. Raises BadInput, with file:line, when one is not a ReAct episode."""
    return list(trajectory.read(recipe.data))


def sequence_len(recipe: Recipe) -> int:
    """The longest episode in tokens that is trained; where the recipe says nothing, as Axolotl 0.19 has it."""
    return int(recipe.settings.get("sequence_len") or 512)


def tokens_of(recipe: Recipe, base: Path, episodes: list[Episode]) -> list[Tokenised]:
    """The tokens and labels that Axolotl itself makes of each episode."""
    return tokenise(base, recipe.dataset, episodes, sequence_len(recipe), recipe.settings)


def quick(recipe: Recipe, machine: Machine, lengths: Sequence[int] = ()) -> list[Finding]:
    """What can be found without Axolotl and the base model: memory, disk, rates, devices, gates, checkpoints.

    `lengths`: tokens of each episode, where they are known.
    """
    model = catalog.model_of(str(recipe.settings["base_model"]))
    findings = [
        *rates(recipe, model),
        *batch(recipe),
        *precision(recipe, machine),
        *gate(recipe, model, machine),
        *sharding(recipe),
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


def method_of(settings: Mapping[str, object]) -> str:
    """The method of a recipe: qlora for an adapter over a base in 4 bits, lora for any other adapter, else full."""
    if not settings.get("adapter"):
        return "full"
    return "qlora" if settings.get("load_in_4bit") or settings["adapter"] == "qlora" else "lora"


def rates(recipe: Recipe, model: Model | None) -> Iterator[Finding]:
    """A learning rate outside of what is advised for the method; a tier that sets its own is left alone."""
    method = catalog.methods()[method_of(recipe.settings)]
    low, high = method.advised
    rate = float(recipe.settings.get("learning_rate") or 0)
    if "learning_rate" not in recipe.tier.changes and not low <= rate <= high:
        where = "above" if rate > high else "below"
        fix = f"learning_rate: {method.rate(model) if model else high:g}"
        yield Finding(
            "warning",
            f"learning_rate {rate:g} is {where} {low:g} to {high:g}, advised for {method.title}",
            recipe.at("learning_rate"),
            fix,
        )


def batch(recipe: Recipe) -> Iterator[Finding]:
    """An effective batch that is not the method's, on a tier of several devices: the recipe was made for another."""
    settings, world = recipe.settings, recipe.tier.world
    wanted = catalog.methods()[method_of(settings)].effective_batch
    product = int(settings.get("micro_batch_size") or 1) * int(settings.get("gradient_accumulation_steps") or 1)
    if recipe.tier.gpu and product * world != wanted:
        what = f"{product} x {world} devices = {product * world} episodes an update; the method has {wanted}"
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
    if model and model.gated and not machine.token and not Path(str(recipe.settings["base_model"])).is_dir():
        fix = f"accept its licence on its page on the hub, then `hf auth login` or HF_TOKEN=... ({model.hub})"
        yield Finding("error", f"{model.title} is gated and no hub token is here", recipe.at("base_model"), fix)


def sharding(recipe: Recipe) -> Iterator[Finding]:
    """FSDP2 whose checkpoints hold a part of the adapter: accelerate 1.13 asks peft for it, which gathers nothing.

    The first process saves its shard (accelerate/utils/fsdp_utils.py, `_get_model_state_dict` with adapter_only), the
    others load nothing, and no one says so: two processes that resume go on with half an adapter.
    """
    way = recipe.settings.get("fsdp_config") or {}
    if (
        recipe.settings.get("adapter")
        and recipe.settings.get("fsdp_version") == 2
        and way.get("state_dict_type") == "FULL_STATE_DICT"
    ):
        yield Finding(
            "error",
            "checkpoints would hold the first process's part of the adapter alone; resumed, the rest begins anew",
            recipe.at("fsdp_config", "state_dict_type"),
            "state_dict_type: SHARDED_STATE_DICT, and final_state_dict_type: FULL_STATE_DICT",
        )


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
    """A change that takes less memory, in words: its keys, what it wins, and the episodes that it drops."""
    most = change.keys.get("sequence_len", 0)
    dropped = sum(length > most for length in lengths) / len(lengths) if most and lengths else 0
    drops = f" and drops {dropped:.1%} of the episodes" if dropped else ""
    return f"{change.words} ({keys(change.keys)}) wins {change.won:.1f} GiB{drops}"


def keys(changes: Mapping[str, object]) -> str:
    """Keys and values as they stand in a recipe, on one line."""
    return ", ".join(
        f"{key}: {value if isinstance(value, str) else orjson.dumps(value).decode()}" for key, value in changes.items()
    )


def repeated(recipe: Recipe, episodes: list[Episode]) -> Iterator[Finding]:
    """Episodes that stand twice in the training data, and those that the test set has too."""
    data = recipe.dataset["path"]
    seen: dict[bytes, int] = {}
    twice = []
    for number, episode in enumerate(episodes, 1):
        text = orjson.dumps(episode["messages"])
        if text in seen:
            twice.append((number, seen[text]))
        seen.setdefault(text, number)
    if twice:
        number, first = twice[0]
        yield Finding(
            "warning",
            f"{len(twice)} episodes stand twice; this one is line {first} too",
            f"{data}:{number}",
            "remove one of each",
        )
    if recipe.data.resolve() != trajectory.TEST_DATA:
        known = (seen.get(orjson.dumps(each["messages"])) for each in trajectory.read(trajectory.TEST_DATA))
        leaked = [number for number in known if number]
        if leaked:
            yield Finding(
                "error",
                f"{len(leaked)} episodes are in the test set too",
                f"{data}:{leaked[0]}",
                f"remove them, here or in {trajectory.TEST_DATA.relative_to(run_folder.ROOT)}",
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
    found = [*findings, *mask(data, tokenizer, episodes, tokenised), *too_long(recipe, data, tokenised, length)]
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


def too_long(recipe: Recipe, data: str, tokenised: list[Tokenised], length: int) -> Iterator[Finding]:
    """Episodes longer than the sequence: an error when most are, since training drops them."""
    long = [number for number, (ids, _) in enumerate(tokenised, 1) if len(ids) > length]
    if not long:
        return
    longest = max(len(ids) for ids, _ in tokenised)
    share = f"{len(long) / len(tokenised):.0%} of the episodes are dropped"
    what = f"{len(tokenised[long[0] - 1][0])} tokens and sequence_len is {length}: {share}"
    fix = f"sequence_len: {-(-longest // 256) * 256} ({recipe.at('sequence_len')}), or shorter episodes"
    yield Finding("error" if len(long) * 2 > len(tokenised) else "warning", what, f"{data}:{long[0]}", fix)


def mask(
    data: str, tokenizer: "PreTrainedTokenizerBase", episodes: list[Episode], tokenised: list[Tokenised]
) -> Iterator[Finding]:
    """A loss mask that is not the assistant's turns and the token that ends each: a template and an eos at odds."""
    for number, (episode, (ids, labels)) in enumerate(zip(episodes, tokenised, strict=True), 1):
        said = [turn["content"] for turn in episode["messages"] if turn["role"] == "assistant"]
        trained = [tokenizer.decode(span) for span in spans(ids, labels)]
        if trained != [f"{text}{tokenizer.eos_token}" for text in said]:
            pairs = itertools.zip_longest(trained, said, fillvalue="")
            seen, wanted = next(pair for pair in pairs if pair[0] != f"{pair[1]}{tokenizer.eos_token}")
            shown = f"{seen[-60:]!r}, and not {(wanted + tokenizer.eos_token)[-60:]!r}"
            what = f"trained is not what the assistant says and its end token: {shown}"
            fix = "roles_to_train: [assistant], train_on_eos: turn, an eos_token that ends the template's turns"
            yield Finding("error", what, f"{data}:{number}", fix)
            return


def spans(ids: list[int], labels: list[int]) -> list[list[int]]:
    """The runs of trained tokens of one episode, in order."""
    found: list[list[int]] = []
    for position, label in enumerate(labels):
        if label == IGNORED:
            continue
        if position == 0 or labels[position - 1] == IGNORED:
            found.append([])
        found[-1].append(ids[position])
    return found


def preview(tokenizer: "PreTrainedTokenizerBase", ids: list[int], labels: list[int]) -> "Text":
    """One episode as the model sees it: trained tokens bold green, all others dim."""
    from rich.text import Text

    text = Text()
    for token, label in zip(ids, labels, strict=True):
        said = quote.visible(tokenizer.decode([token]), keep="\n\t")
        text.append(said, style="dim" if label == IGNORED else "bold green")
    return text


def table(findings: list[Finding]) -> list[str]:
    """The findings as lines for the screen, the gravest first."""
    order = ("error", "warning", "advice")
    ranked = sorted(findings, key=lambda each: order.index(each.level))
    return [f"{each.level}: {each.where}: {each.what}. {each.fix[:1].upper()}{each.fix[1:]}" for each in ranked]


def show(found: Report) -> None:
    """Print a check's preview, its figures and its findings, gravest last, where the eye is."""
    from rich.console import Console

    if found.preview:
        Console().print(found.preview)
        print(
            f"check: {found.episodes} episodes, {found.tokens} tokens, {found.trained / found.tokens:.0%} of them "
            f"trained (green above), the longest {found.longest} of {found.sequence_len}"
        )
    for line in table(found.findings):
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
    """One recipe held against Axolotl's schema."""
    name = f"{path.parent.name}/{path.stem}"
    try:
        going = schema.validate(read_recipe(path))
    except BadInput as error:
        return {"recipe": name, "ok": False, "findings": [str(error)]}
    return {"recipe": name, "ok": not going, "findings": going}


def as_json(report: Report) -> dict[str, object]:
    """A report for machines."""
    values = {key: value for key, value in vars(report).items() if key not in ("preview", "findings")}
    return values | {"ok": not report.errors, "findings": [asdict(each) for each in report.findings]}
