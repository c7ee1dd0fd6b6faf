"""Run by LLaMA-Factory's own Python: the tokens and labels of the rows that it trains on, as JSON on the last line.

python llamafactory_rows.py < a JSON list of the arguments of trainings
"""

import json
import sys

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

found = []
for given in json.load(sys.stdin):
    model_args, data_args, training_args, _, _ = get_train_args(given)
    module = load_tokenizer(model_args)
    chosen = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    rows = get_dataset(chosen, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    found.append([[row["input_ids"], row["labels"]] for row in rows])
print("\n" + json.dumps(found))
