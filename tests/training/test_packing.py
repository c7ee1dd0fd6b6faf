"""Episodes packed into a row are trained as alone: through Axolotl's own data, collator and loading of the model."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from tools.core import trajectory
from tools.gguf import find_base
from tools.recipes import recipe
from tools.training.tokens import IGNORED, Tokenised, tokenise

pytestmark = pytest.mark.slow
EPISODES = 10
# What a model is given of one row, by name, each [1, tokens].
Row = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Axolotl's trainer of a packed recipe of SmolLM2, as a machine without a GPU runs it: sdpa, 32 bits."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer

    folder = tmp_path_factory.mktemp("packed")
    data = folder / "train.jsonl"
    with (recipe.RECIPES.parent / "data" / "train.jsonl").open("rb") as lines:
        data.write_bytes(b"".join(islice(lines, EPISODES)))
    settings = dict(recipe.read_recipe(recipe.find("cpu/smollm2-135m-lora")).settings)
    settings |= {key: True for key in ("sample_packing", "pad_to_sequence_len", "eval_sample_packing")}
    settings |= {
        "base_model": str(find_base.resolve(settings["base_model"])),
        "datasets": [{**settings["datasets"][0], "path": str(data)}],
        "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "prepared"),
        "plugins": ["tools.training.cpu_plugin.CpuPlugin"],
        "use_tensorboard": False,
        "dataset_num_proc": 1,
    }
    path = folder / "packed.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AXOLOTL_DO_NOT_TRACK", "1")
        cfg = load_cfg(str(path))
        trainer, *_ = setup_model_and_trainer(cfg, load_datasets(cfg=cfg))
        yield trainer


@pytest.fixture(scope="module")
def alone() -> list[Tokenised]:
    """The tokens and labels of each episode by itself."""
    asked = recipe.read_recipe(recipe.find("cpu/smollm2-135m-lora"))
    episodes = list(islice(trajectory.read(asked.data), EPISODES))
    return tokenise(find_base.resolve(asked.base), asked.dataset, episodes, 2048, asked.settings)


@pytest.fixture(scope="module")
def rows(packed: Any) -> list[Row]:
    """The batches that a training's model is given."""
    return list(packed.get_train_dataloader())


def episodes_of(row: Row) -> Iterator[tuple[slice, list[int], list[int]]]:
    """Where each episode of a row stands, its ids and its labels; padding, in which nothing is trained, is left out."""
    places = row["position_ids"][0].tolist()
    starts = [place for place, position in enumerate(places) if position == 0] + [len(places)]
    for span in map(slice, starts, starts[1:]):
        labels = row["labels"][0, span].tolist()
        if any(label != IGNORED for label in labels):
            yield span, row["input_ids"][0, span].tolist(), labels


def losses(model: Any, ids: torch.Tensor, labels: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
    """The loss of each position [tokens - 1], 0 where nothing is trained."""
    with torch.no_grad():
        logits = model(input_ids=ids, **given).logits[0, :-1].float()
    return cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED, reduction="none")


def test_what_is_trained_is_the_same_packed_as_alone(rows: list[Row], alone: list[Tokenised]) -> None:
    found = [(ids, labels) for row in rows for _, ids, labels in episodes_of(row)]
    assert len(rows) < EPISODES / 2 and all(row["input_ids"].shape == (1, 2048) for row in rows)
    assert sorted(found) == sorted(alone)
    # Nothing is trained by what an earlier episode says.
    assert all(labels[0] == IGNORED for _, labels in found)


def test_an_episodes_loss_is_the_same_packed_as_alone(packed: Any, rows: list[Row]) -> None:
    model = packed.model.eval()
    compared = 0
    for row in rows[:1]:
        given = {key: value for key, value in row.items() if key in ("position_ids", "attention_mask")}
        of_row = losses(model, row["input_ids"], row["labels"], **given)
        for span, ids, labels in episodes_of(row):
            of_one = losses(model, torch.tensor([ids]), torch.tensor([labels]))
            torch.testing.assert_close(of_row[span.start : span.stop - 1], of_one, atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared >= 2


def test_an_episode_is_not_the_same_where_it_sees_the_one_before(packed: Any, rows: list[Row]) -> None:
    """The comparison is one that a leak would fail: without positions that begin anew, it does."""
    model, row = packed.model.eval(), rows[0]
    of_row = losses(model, row["input_ids"], row["labels"])
    _, (span, ids, labels), *_ = episodes_of(row)
    of_one = losses(model, torch.tensor([ids]), torch.tensor([labels]))
    assert (of_row[span.start : span.stop - 1] - of_one).abs().max() > 1e-2
