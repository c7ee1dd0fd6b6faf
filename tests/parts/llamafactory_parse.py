"""Run by LLaMA-Factory's own Python: which arguments its parsers refuse, as JSON on the last line of stdout.

python llamafactory_parse.py < a JSON list of [what they are for (train or export), the arguments]
"""

import json
import sys

from llamafactory.hparams.parser import _INFER_ARGS, _TRAIN_ARGS
from transformers import HfArgumentParser

parsers = {"train": HfArgumentParser(_TRAIN_ARGS), "export": HfArgumentParser(_INFER_ARGS)}
# What a machine without a GPU and without DeepSpeed cannot be asked for.
HERE = {"bf16": False, "fp16": False, "tf32": None, "use_cpu": True, "deepspeed": None}
refused = []
for number, (kind, given) in enumerate(json.load(sys.stdin)):
    try:
        parsers[kind].parse_dict(given | (HERE if kind == "train" else {}), allow_extra_keys=False)
    except Exception as error:
        refused.append([number, str(error)])
print("\n" + json.dumps(refused))
