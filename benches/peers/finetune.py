"""Fine-tunes an encoder with PyTorch as couplet does: same start, same rows, same held-out rows, same settings.

Prints a JSON document a line: for each seed the metrics on the held-out rows after every epoch.

    python finetune.py ../../../shared/models/minilm-base ../../../shared/data/mrpc/msr_paraphrase_train.txt
    python finetune.py ../../../shared/models/minilm-base ../../../shared/data/stsb/stsb-en-train.csv \
        --dev ../../../shared/data/stsb/stsb-en-dev.csv
"""

import argparse
import csv
import json
import time

import numpy
import torch
from blake3 import blake3
from scipy.stats import pearsonr, spearmanr
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("data", help="MRPC: tab-separated label, two ids, two sentences; with --dev STS-B")
parser.add_argument("--dev", help="STS-B: the held-out rows, like DATA comma-separated sentences and similarity")
parser.add_argument("--seeds", default="1,2,3")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--learning-rate", type=float, default=5e-5)
parser.add_argument("--schedule", choices=["linear", "constant"], default="linear")
parser.add_argument("--threads", type=int, default=2)


def held_out(ids, fraction=0.1, seed=42):
    """couplet's `HoldOut`: a row is held out by a hash of its ids."""
    hasher = blake3(b"couplet validation split" + seed.to_bytes(8, "little"))
    for part in ids:
        part = part.encode()
        hasher.update(len(part).to_bytes(8, "little") + part)
    return (int.from_bytes(hasher.digest()[:8], "little") >> 11) / 2**53 < fraction


def read(path):
    """The rows to learn from and the rows held out; quotation marks mean nothing."""
    training, validation = [], []
    with open(path, encoding="utf-8-sig") as file:
        next(file)
        for line in file:
            label, id1, id2, text, text_pair = line.rstrip("\r\n").split("\t")
            part = validation if held_out((id1, id2)) else training
            part.append((text, text_pair, int(label)))
    return training, validation


def read_similarities(path):
    with open(path, encoding="utf-8", newline="") as file:
        return [(text, text_pair, float(label)) for text, text_pair, label in csv.reader(file)]


def encode(rows, model):
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.enable_truncation(128)
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch([(text, pair) for text, pair, _ in rows])
    return [(e.ids, e.type_ids, label) for e, (_, _, label) in zip(encodings, rows)]


def tensors(rows):
    length = max(len(ids) for ids, _, _ in rows)
    batch = {name: torch.zeros(len(rows), length, dtype=torch.long) for name in ("input_ids", "token_type_ids")}
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, (ids, types, _) in enumerate(rows):
        batch["input_ids"][i, : len(ids)] = torch.tensor(ids)
        batch["token_type_ids"][i, : len(ids)] = torch.tensor(types)
        mask[i, : len(ids)] = 1
    return batch | {"attention_mask": mask, "labels": torch.tensor([label for _, _, label in rows])}


def metrics(model, rows):
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    right = numpy.array([rows[i][2] for i in order])
    logits = []
    with torch.no_grad():
        for start in range(0, len(order), 32):
            logits.append(model(**tensors([rows[i] for i in order[start : start + 32]])).logits.numpy())
    logits = numpy.concatenate(logits)
    if logits.shape[1] == 1:
        said = logits[:, 0]
        return {"pearson": float(pearsonr(said, right).statistic), "spearman": float(spearmanr(said, right).statistic)}
    said = logits.argmax(-1)
    tp, tn = ((said == 1) & (right == 1)).sum(), ((said == 0) & (right == 0)).sum()
    fp, fn = ((said == 1) & (right == 0)).sum(), ((said == 0) & (right == 1)).sum()
    root = numpy.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "accuracy": float((tp + tn) / len(right)),
        "f1": float(2 * tp / (2 * tp + fp + fn)),
        "matthews": float((tp * tn - fp * fn) / root) if root else 0.0,
    }


def train(seed, training, validation, args):
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, num_labels=1 if args.dev else 2, dtype=torch.float32
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, eps=1e-8, weight_decay=0.0)
    steps = args.epochs * -(-len(training) // args.batch_size)
    linear = get_linear_schedule_with_warmup(optimizer, 0, steps) if args.schedule == "linear" else None
    epochs, seconds = [], 0.0
    for _ in range(args.epochs):
        model.train()
        start = time.time()
        order = torch.randperm(len(training)).tolist()
        for at in range(0, len(order), args.batch_size):
            optimizer.zero_grad()
            model(**tensors([training[i] for i in order[at : at + args.batch_size]])).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if linear:
                linear.step()
        seconds += time.time() - start
        epochs.append(metrics(model, validation))
    return {"seed": seed, "epochs": epochs, "examples_per_second": args.epochs * len(training) / seconds}


if __name__ == "__main__":
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = map(read_similarities, (args.data, args.dev)) if args.dev else read(args.data)
    training, validation = (encode(rows, args.model) for rows in parts)
    for seed in map(int, args.seeds.split(",")):
        row = train(seed, training, validation, args)
        print(json.dumps({"engine": "pytorch", "rows": [len(training), len(validation)]} | row), flush=True)
