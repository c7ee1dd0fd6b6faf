"""The order of packed rows: by the recipe's seed and the epoch alone, so that a resumed training reads what is left."""

from typing import Any

import torch
from accelerate import data_loader
from axolotl.utils.samplers import MultipackBatchSampler
from torch.utils.data import RandomSampler


def repeat_order(seed: int) -> None:
    """Have Axolotl's packing draw each epoch's order of episodes anew from `seed` and the epoch, in this process.

    In Axolotl 0.19 it is drawn from torch's own random numbers, so what was drawn before changes it; and accelerate
    1.13 does not tell the sampler the epoch where batches are skipped, or shared by several processes. A training that
    goes on in the middle of an epoch would read some episodes twice and others never.
    """
    tell = MultipackBatchSampler.set_epoch

    def set_epoch(self: MultipackBatchSampler, epoch: int) -> None:
        if isinstance(self.sampler, RandomSampler):
            self.sampler.generator = torch.Generator().manual_seed(seed + epoch)
        tell(self, epoch)

    def pass_on(self: Any, epoch: int) -> None:
        if hasattr(self.batch_sampler, "set_epoch"):
            self.batch_sampler.set_epoch(epoch)

    MultipackBatchSampler.set_epoch = set_epoch
    for outer in (data_loader.SkipBatchSampler, data_loader.BatchSamplerShard):
        outer.set_epoch = pass_on
