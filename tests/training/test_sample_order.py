"""A training that goes on in the middle of an epoch reads the rest of its packed rows."""

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from accelerate.utils import DataLoaderConfiguration, set_seed
from axolotl.utils.samplers import MultipackBatchSampler
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tools.training.sample_order import repeat_order

LENGTHS = numpy.random.default_rng(0).integers(100, 900, 200)
pytestmark = pytest.mark.heavy


class Numbers(Dataset[Any]):
    """A dataset whose items are their places."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, place: Any) -> Any:
        return place


@pytest.fixture(autouse=True)
def repeating(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The order of a seed, taken back afterwards."""
    monkeypatch.setattr(MultipackBatchSampler, "set_epoch", MultipackBatchSampler.set_epoch)
    for outer in (SkipBatchSampler, BatchSamplerShard):
        monkeypatch.setattr(outer, "set_epoch", None, raising=False)
    repeat_order(3407)
    yield


def loader(processes: int) -> Any:
    """What Axolotl's trainer reads packed rows from, as accelerate prepares it for the first of some processes."""
    sampler: Any = MultipackBatchSampler(
        RandomSampler(Numbers()), batch_size=1, batch_max_len=2048, lengths=LENGTHS, bin_size=200, num_processes=1
    )
    if processes > 1:
        len(sampler)  # Counted by torch.distributed, where there is one.
        sampler = BatchSamplerShard(sampler, num_processes=processes, process_index=0, even_batches=False)
    made = DataLoader(Numbers(), batch_sampler=sampler, collate_fn=list)
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False)).prepare(made)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("drawn", [0, 5])
def test_what_is_left_of_an_epoch_is_read_after_a_stop(processes: int, drawn: int) -> None:
    set_seed(7)
    unbroken = loader(processes)
    unbroken.set_epoch(1)
    rows = list(unbroken)
    set_seed(7)
    resumed = loader(processes)
    torch.rand(drawn)
    rest = skip_first_batches(resumed, 3)
    rest.set_epoch(1)
    assert list(rest) == rows[3:] and len(rows) > 10
    unbroken.set_epoch(2)
    assert list(unbroken) != rows
