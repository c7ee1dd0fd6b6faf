"""Run by LLaMA-Factory's own Python: what its loader trains on, as JSON on the last line of stdout.

python llamafactory_spans.py FOLDER MODEL TEMPLATE ENTRY...   each ENTRY of FOLDER/dataset_info.json
"""

import json
import sys

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

folder, model, template, *entries = sys.argv[1:]
found: dict[str, list[list[str]]] = {}
for entry in entries:
    given = {"stage": "sft", "do_train": True, "finetuning_type": "lora", "model_name_or_path": model, "use_cpu": True}
    given |= {"dataset": entry, "dataset_dir": folder, "template": template, "cutoff_len": 8192, "report_to": "none"}
    model_args, data_args, training_args, _, _ = get_train_args(given | {"output_dir": f"{folder}/out"})
    module = load_tokenizer(model_args)
    tokenizer = module["tokenizer"]
    chosen = get_template_and_fix_tokenizer(tokenizer, data_args)
    rows = get_dataset(chosen, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    found[entry] = []
    for row in rows:
        spans, span = [], []
        for label in [*row["labels"], -100]:
            if label != -100:
                span.append(label)
            elif span:
                spans.append(tokenizer.decode(span))
                span = []
        found[entry].append(spans)
print("\n" + json.dumps(found))
