"""Loads models trained by couplet in transformers; prints token ids and types of a few texts, labels, activation."""

import json
import sys

from transformers import AutoConfig, AutoTokenizer

TEXTS = json.load(sys.stdin)


def read(folder):
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    encodings = [tokenizer(text, pair) for text, pair in TEXTS]
    return {
        "ids": [encoding["input_ids"] for encoding in encodings],
        "types": [encoding.get("token_type_ids") for encoding in encodings],
        "labels": [config.id2label[i] for i in range(config.num_labels)],
        "problem_type": config.problem_type,
        "activation": getattr(config, "sentence_transformers", {}).get("activation_fn"),
    }


print(json.dumps([read(folder) for folder in sys.argv[1:]]))
