"""Run by LLaMA-Factory's own Python: the turns and columns that its loader reads, as JSON on the last line of stdout.

python llamafactory_turns.py FOLDER MODEL TEMPLATE ENTRY...   each ENTRY of FOLDER/dataset_info.json
"""

import json
import sys

from llamafactory.data.loader import _get_merged_dataset
from llamafactory.hparams import get_train_args

folder, model, template, *entries = sys.argv[1:]
given = {"stage": "sft", "do_train": True, "finetuning_type": "lora", "model_name_or_path": model, "use_cpu": True}
given |= {"dataset": ",".join(entries), "dataset_dir": folder, "template": template, "report_to": "none"}
model_args, data_args, training_args, _, _ = get_train_args(given | {"output_dir": f"{folder}/out"})
rows = _get_merged_dataset(entries, model_args, data_args, training_args, "sft", return_dict=True)
print("\n" + json.dumps({entry: list(each) for entry, each in rows.items()}))
