"""What a recipe makes of its data: updates, lengths, tokens that nobody trains, the loss mask, repeats."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tools.core import hf_folder, run_folder, trajectory
from tools.core.finding import Finding
from tools.core.trajectory import Episode
from tools.recipes import schema
from tools.recipes.recipe import Recipe
from tools.training.recipe_checks import few_updates
from tools.training.tokens import IGNORED, Tokenised

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Characters of a token, where the tokenizer is not here: English has about four, the lists of a household 3.4.
CHARACTERS = 3.5


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


def too_long(
    recipe: Recipe, data: str, tokenised: list[Tokenised], length: int, rows: str = "episodes"
) -> Iterator[Finding]:
    """Episodes longer than the sequence: an error when most are dropped, or when Axolotl is told to raise.

    Truncated, an episode is trained without its end, the answers that finish the task most of all.
    """
    long = [number for number, (ids, _) in enumerate(tokenised, 1) if len(ids) > length]
    if not long:
        return
    how = strategy(recipe)
    longest, share = max(len(ids) for ids, _ in tokenised), f"{len(long) / len(tokenised):.0%} of the {rows}"
    if how == "truncate":
        trained = sum(label != IGNORED for _, labels in tokenised for label in labels)
        lost = sum(label != IGNORED for _, labels in tokenised for label in labels[length:])
        fate = f"are truncated: trained without their end, {lost / (trained or 1):.0%} of the trained tokens"
    else:
        fate = "are too long, and excess_length_strategy: raise stops there" if how == "raise" else "are dropped"
    what = f"{len(tokenised[long[0] - 1][0])} tokens and sequence_len is {length}: {share} {fate}"
    fatal = how == "raise" or (how == "drop" and len(long) * 2 > len(tokenised))
    fix = f"sequence_len: {-(-longest // 256) * 256} ({recipe.at('sequence_len')}), or shorter {rows}"
    yield Finding("error" if fatal else "warning", what, f"{data}:{long[0]}", fix)


def strategy(recipe: Recipe) -> str:
    """What Axolotl 0.19 does with an episode longer than the sequence: drop, truncate or raise."""
    return str(recipe.settings.get("excess_length_strategy") or "drop").lower()


def new_tokens(recipe: Recipe, base: Path, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    """Tokens that the base's tokenizer does not have, with an adapter that leaves the embeddings as they are.

    Axolotl 0.19 looks at some of `special_tokens` alone (loaders/tokenizer.py). Padding is never trained, so a new pad
    token only makes the embeddings larger.
    """
    from axolotl.loaders.utils import get_linear_embedding_layers

    settings = recipe.settings
    if not settings.get("adapter") or settings.get("peft_trainable_token_indices"):
        return
    config = hf_folder.settings(base / "config.json")
    layers = get_linear_embedding_layers(str(config.get("model_type")))
    trained = [each for each in layers if each in (settings.get("lora_modules_to_save") or ())]
    if len(trained) == len(layers) or (trained and config.get("tie_word_embeddings")):
        return
    known = tokenizer.get_vocab()
    special = dict(settings.get("special_tokens") or {})
    padding, more = special.pop("pad_token", None), special.pop("additional_special_tokens", None) or []
    named = {"tokens": settings.get("tokens") or [], "special_tokens": [*special.values(), *more]}
    for key, texts in named.items():
        unknown = [str(each) for each in texts if each and str(each) not in known]
        if unknown:
            what = f"{', '.join(unknown)}: new to the tokenizer, and the adapter leaves the embeddings untrained"
            yield Finding("error", what, recipe.at(key), f"lora_modules_to_save: [{', '.join(layers)}]")
    if padding and str(padding) not in known:
        what = f"{padding}: new to the tokenizer: the embeddings grow for a token that is never trained"
        fix = f"pad_token: {tokenizer.pad_token or tokenizer.eos_token!r}, which it has"
        yield Finding("advice", what, recipe.at("special_tokens", "pad_token"), fix)


def end_tokens(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", tokenised: Sequence[Tokenised]
) -> Iterator[Finding]:
    """Tokens of `eot_tokens` that no episode has: Axolotl 0.19 leaves them out (prompt_strategies/chat_template.py)."""
    seen = {token for ids, _ in tokenised for token in ids}
    known = tokenizer.get_vocab()
    for each in recipe.settings.get("eot_tokens") or ():
        if known.get(each) not in seen:
            what = f"{each}: the chat template writes no such token, so it ends no turn"
            yield Finding("warning", what, recipe.at("eot_tokens"), f"remove it, or name {tokenizer.eos_token}")


def lengths_of(episodes: Sequence[Episode], tokenised: Sequence[Tokenised]) -> list[int]:
    """Tokens of each episode; by its characters, roughly, where the tokenizer is not here."""
    if tokenised:
        return [len(ids) for ids, _ in tokenised]
    return [int(sum(len(turn["content"]) for turn in each["messages"]) / CHARACTERS) for each in episodes]


def updates(recipe: Recipe, lengths: Sequence[int]) -> Iterator[Finding]:
    """A run with too few updates, a warm-up that outlasts it, a validation part that cannot be made or be packed.

    Axolotl itself makes the validation part and counts the updates. `lengths`: tokens of each episode.
    """
    from axolotl.utils.data.sft import _handle_train_dataset_split
    from axolotl.utils.data.shared import merge_datasets
    from axolotl.utils.trainer import calculate_total_num_steps
    from datasets import Dataset

    settings, length = recipe.settings, int(recipe.settings.get("sequence_len") or 512)
    kept = [min(each, length) for each in lengths if each <= length or strategy(recipe) == "truncate"]
    if not kept or len(settings.get("datasets") or ()) > 1 or settings.get("streaming"):
        return
    with schema.AxolotlLog():
        cfg = schema.read_by_axolotl(recipe)
    groups = recipe.tier.world // cfg.context_parallel_size
    cfg.batch_size = cfg.micro_batch_size * cfg.gradient_accumulation_steps * groups
    cfg.total_num_tokens = cfg.total_supervised_tokens = sum(kept)  # Else it counts them in the tokens themselves.
    cfg.dataset_num_proc = 1
    try:
        rows = merge_datasets([Dataset.from_dict({"length": kept})], cfg)
        train, held = _handle_train_dataset_split(rows, cfg)
    except ValueError as error:
        why = str(error).partition(". ")[0]
        what = f"val_set_size {settings.get('val_set_size')} of {len(kept)} episodes: {' '.join(why.split())}"
        yield Finding("error", what, recipe.at("val_set_size"), "a share of the episodes: val_set_size: 0.1")
        return
    if held and cfg.sample_packing and cfg.eval_sample_packing is not False:
        yield from packed_validation(recipe, cfg, held)
    total = calculate_total_num_steps(cfg, train, update=False)
    total = min(total, cfg.max_steps) if cfg.max_steps else total
    fix = "more episodes; then more num_epochs, or a smaller gradient_accumulation_steps"
    yield from few_updates(recipe, total, f"{len(train)} episodes", fix)
    key = "warmup_steps" if cfg.warmup_steps is not None else "warmup_ratio"
    warm = cfg.warmup_steps or int((cfg.warmup_ratio or 0) * total)
    if warm > 1 and warm >= total:
        what = f"the warm-up takes {warm} updates and the run {total}: the learning rate never gets to its full value"
        yield Finding("warning", what, recipe.at(key), "warmup_ratio: 0.1")


def packed_validation(recipe: Recipe, cfg: "DictDefault", held: "Dataset") -> Iterator[Finding]:
    """A validation part too small to pack: no batch at all, or less than one. `cfg`: the recipe as Axolotl reads it.

    Where the attention takes no packed row by itself, Axolotl 0.19 batches packed rows and drops the batch that is not
    full (core/builders/causal.py, multipack_real_batches; core/trainers/base.py, _create_multipack_sampler).
    """
    from axolotl.utils.samplers import MultipackBatchSampler
    from axolotl.utils.trainer import calculate_total_num_steps
    from torch.utils.data import SequentialSampler

    rows, tokens = cfg.micro_batch_size, sum(held["length"])
    whole = not cfg.attn_supports_packing if cfg.multipack_real_batches is None else cfg.multipack_real_batches
    sampler = MultipackBatchSampler(
        SequentialSampler(held),
        lengths=held["length"],
        batch_size=rows if whole else 1,
        batch_max_len=cfg.sequence_len * (1 if whole else rows),
        bin_size=cfg.sample_packing_bin_size,
        group_size=cfg.sample_packing_group_size,
        num_processes=1,
        num_count_samples=1,
    )
    none = not len(sampler) or (cfg.dataloader_drop_last and not calculate_total_num_steps(cfg, held, update=False))
    if none or tokens < rows * cfg.sequence_len:
        what = f"the validation part (episodes: {len(held)}, tokens: {tokens}) is less than a packed batch of "
        what += f"{rows} x {cfg.sequence_len} tokens{', and none is validated' if none else ''}"
        fix = "eval_sample_packing: false, or more episodes"
        yield Finding("error" if none else "warning", what, recipe.at("val_set_size"), fix)


def flags(recipe: Recipe, episodes: list[Episode]) -> Iterator[Finding]:
    """Turns whose `train` says something else than their role, counted; an error where the recipe does not read it."""
    data = recipe.dataset["path"]
    told = [
        (number, turn["role"])
        for number, episode in enumerate(episodes, 1)
        for turn in episode["messages"]
        if trajectory.trained(turn) != (turn["role"] == "assistant")
    ]
    if told and recipe.dataset.get("message_field_training") != "train":
        what = f"{len(told)} turns say by `train` whether they are trained (the first: {data}:{told[0][0]})"
        where = recipe.at("datasets", 0, "message_field_training")
        yield Finding("error", f"{what}, and the recipe does not read it", where, "message_field_training: train")
        return
    if masked := [number for number, role in told if role == "assistant"]:
        what = f"{len(masked)} answers are not trained, as their `train: false` says"
        yield Finding("advice", what, f"{data}:{masked[0]}", "leave the flag out to train them")
    if others := [number for number, role in told if role != "assistant"]:
        what = f"{len(others)} turns that are no answers are trained, as their `train: true` says"
        yield Finding("advice", what, f"{data}:{others[0]}", "leave the flag out, unless they are to be learned")


def mask(
    data: str, tokenizer: "PreTrainedTokenizerBase", episodes: list[Episode], tokenised: list[Tokenised]
) -> Iterator[Finding]:
    """A loss mask that is not the trained turns and the token that ends each: a template and an eos at odds."""
    for number, (episode, (ids, labels)) in enumerate(zip(episodes, tokenised, strict=True), 1):
        said = [turn["content"] for turn in episode["messages"] if trajectory.trained(turn)]
        trained = [tokenizer.decode(span) for span in spans(ids, labels)]
        if trained != [f"{text}{tokenizer.eos_token}" for text in said]:
            pairs = itertools.zip_longest(trained, said, fillvalue="")
            seen, wanted = next(pair for pair in pairs if pair[0] != f"{pair[1]}{tokenizer.eos_token}")
            shown = f"{seen[-60:]!r}, and not {(wanted + tokenizer.eos_token)[-60:]!r}"
            what = f"trained is not what the assistant says and its end token: {shown}"
            fix = "roles_to_train: [assistant], train_on_eos: turn, an eos_token that ends the template's turns"
            yield Finding("error", what, f"{data}:{number}", fix)
            return


def control_tokens(data: str, tokenizer: "PreTrainedTokenizerBase", episodes: Sequence[Episode]) -> Iterator[Finding]:
    """Texts that spell a control token, such as the one that ends a turn: it is read as that token."""
    spelt = re.compile("|".join(re.escape(str(each)) for each in tokenizer.all_special_tokens))
    places = [
        (number, turn["role"], found[0])
        for number, episode in enumerate(episodes, 1)
        for turn in episode["messages"]
        if (found := spelt.search(turn["content"]))
    ]
    if places:
        number, role, token = places[0]
        count = len({number for number, _, _ in places})
        what = (
            f"{token} stands in a text of the {role}'s, and is read as the control token; episodes with such: {count}"
        )
        yield Finding("warning", what, f"{data}:{number}", "take it out: the chat template writes these tokens")


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
