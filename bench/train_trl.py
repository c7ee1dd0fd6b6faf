"""Run by bench/train.py: a plain TRL script. `python train_trl.py JSON`, a file of its settings and its tokens."""

import json
import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

asked = json.loads(Path(sys.argv[1]).read_text())
rows = {"input_ids": [ids for ids, _ in asked["tokens"]], "labels": [labels for _, labels in asked["tokens"]]}
trainer = SFTTrainer(
    model=asked["base"],
    args=SFTConfig(**asked["training"], dataset_kwargs={"skip_prepare_dataset": True}),
    train_dataset=Dataset.from_dict(rows),
    processing_class=AutoTokenizer.from_pretrained(asked["base"]),
    peft_config=LoraConfig(**asked["lora"]),
)
trainer.train()
