"""What packing gives: how full rows of the shipped episodes are, and real tokens a second by prediction.

    python bench/packing.py

Axolotl's own tokens, its own packer, SmolLM2's tokenizer; catalog/episodes.yaml holds what is measured. The speed is
the planner's: each packed recipe beside the fastest plan of its tier that packs nothing.
"""

import sys
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tools.core import catalog, files, trajectory  # noqa: E402
from tools.core.catalog import Method  # noqa: E402
from tools.gguf import find_base  # noqa: E402
from tools.recipes import plan, recipe, render  # noqa: E402
from tools.recipes.plan import Plan  # noqa: E402
from tools.training.tokens import tokenise  # noqa: E402

SHUFFLES = 20
# Billion parameters below which a model belongs to a row of the table.
SIZES = (1, 2, 5, 10, 20, 100)
NOTES = """Tokens of the data a second, padding not counted, by prediction: a recipe that packs beside the fastest plan
of the same tier, sequence, optimizer and sharding that does not. 16 devices are left out: packed rows of 2048 tokens
for each of them would be three times the method's update, so their recipes do not pack. Measured on one H100 (Recipes
on a GPU): 2.1 times for 0.5B, 2.4 for 1.5B, with PyTorch's attention; more than is predicted, and the planner does not
say why. Shipped episodes: {count} of {mean} tokens on average. Packed rows of 1024, 1536, 2048, 3072 and 4096 tokens
are filled to {packed}; micro batches of 1, 2, 4, 8 and 16 unpacked ones, padded to the longest, to {padded}."""


def lengths() -> list[int]:
    """Tokens of each shipped episode."""
    asked = recipe.read_recipe(recipe.find("cpu/smollm2-135m-lora"))
    episodes = list(trajectory.read(asked.data))
    made = tokenise(find_base.resolve(asked.base), asked.dataset, episodes, 2048, asked.settings)
    return [len(ids) for ids, _ in made]


def filled(tokens: list[int]) -> tuple[dict[int, float], dict[int, float]]:
    """The share that is no padding: of packed rows by their length, of unpacked micro batches by their size."""
    import numpy as np
    from axolotl.utils.samplers.multipack import pack_parallel

    drawn = np.random.default_rng(0)
    orders = [drawn.permutation(np.array(tokens)) for _ in range(SHUFFLES)]
    packed, padded = {}, {}
    for row in catalog.episodes().packed:
        rows = sum(len(pack_parallel(order, row, 100_000, 200, 1)) for order in orders)
        packed[row] = round(SHUFFLES * sum(tokens) / (rows * row), 2)
    for size in catalog.episodes().padded:
        batches = [order[: len(order) // size * size].reshape(-1, size) for order in orders]
        # Axolotl pads to the next 64 tokens.
        longest = sum(int((-(-batch.max(1) // 64) * 64).sum()) for batch in batches)
        padded[size] = round(sum(int(batch.sum()) for batch in batches) / (longest * size), 2)
    return packed, padded


def named(shares: dict[int, float]) -> dict[str, float]:
    """Shares with their sizes as JSON names things."""
    return {str(size): share for size, share in shares.items()}


def unpacked(found: Plan, method: Method) -> Plan | None:
    """The fastest plan of the same sequence, optimizer and sharding that packs nothing; None where none fits."""
    other = replace(found.settings, packed=False, evaluation=catalog.training().eval_batch_size)
    fits = plan.fitting(found.model, found.tier, other, method.update_tokens)
    return max(fits, key=lambda each: each.tokens_per_second, default=None)


def main() -> None:
    """Measure, compare, write the results and print the table."""
    tokens = lengths()
    packed, padded = filled(tokens)
    gains: dict[int, list[float]] = defaultdict(list)
    for _, model, method, found in render.planned():
        other = unpacked(found, method) if found.settings.packed else None
        if other:
            size = next(each for each in SIZES if model.text_parameters < each * 1e9)
            gains[size].append(found.tokens_per_second / other.tokens_per_second)
    table = ["| models below | recipes | median gain | least | most |", "|---|---|---|---|---|"]
    rows: list[dict[str, Any]] = []
    for size, each in sorted(gains.items()):
        row = {"recipes": len(each), "median": median(each), "least": min(each), "most": max(each)}
        rows.append({"below": size} | {key: round(value, 3) for key, value in row.items()})
        table.append(f"| {size}B | {len(each)} | {median(each):.2f} | {min(each):.2f} | {max(each):.2f} |")
    shares = [", ".join(f"{share:.0%}" for share in each.values()) for each in (packed, padded)]
    mean = round(sum(tokens) / len(tokens))
    made = {
        "title": "Packing",
        "command": "python bench/packing.py",
        "versions": {"axolotl": version("axolotl")},
        "table": table,
        "notes": NOTES.format(count=len(tokens), mean=mean, packed=shares[0], padded=shares[1]),
        "episodes": {"count": len(tokens), "mean": mean, "packed": named(packed), "padded": named(padded)},
        "rows": rows,
    }
    files.write_json(ROOT / "bench" / "results" / "packing.json", made)
    print("\n".join(table))


if __name__ == "__main__":
    main()
