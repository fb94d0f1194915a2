"""Run as a fresh process: open every artefact that a manifest lists and write down its logits."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hf_transfer as ht

manifest, answers = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
found = {}
for name, case in json.loads(manifest.read_text()).items():
    found[name] = {"ours": ht.load(case["path"], device="cpu").logits(case["texts"]).tolist()}
    if case["is_full"]:  # plain transformers must open it too
        model = AutoModelForSequenceClassification.from_pretrained(case["path"]).eval()
        tokenizer = AutoTokenizer.from_pretrained(case["path"])
        with torch.no_grad():
            stock = [model(**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in case["texts"]]
        found[name] |= {"stock": stock, "names": [model.config.id2label[i] for i in range(model.config.num_labels)]}
answers.write_text(json.dumps(found))
