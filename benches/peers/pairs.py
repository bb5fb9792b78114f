"""What the Python peers share: pairs from Parquet, token batches, probabilities to Parquet."""

import argparse
import os

import numpy
import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer

BATCH = 32
MAX_LENGTH = 128
THREADS = int(os.environ["PEER_THREADS"])


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--graph", help="the exported model")
    parser.add_argument("--sorted", action="store_true", help="longest pairs first")
    return parser.parse_args()


def read(path):
    table = pyarrow.parquet.read_table(path)
    return table, list(zip(table["sentence1"].to_pylist(), table["sentence2"].to_pylist()))


def batches(texts, model, by_length):
    """Yields row numbers, input_ids and attention_mask `[B, S]`, padded to the longest of the batch."""
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.no_padding()
    input_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    rows = numpy.arange(len(input_ids))
    if by_length:
        rows = numpy.argsort([-len(ids) for ids in input_ids], kind="stable")
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        length = max(len(input_ids[row]) for row in batch)
        padded = numpy.zeros((len(batch), length), dtype=numpy.int64)
        mask = numpy.zeros_like(padded)
        for i, row in enumerate(batch):
            padded[i, : len(input_ids[row])] = input_ids[row]
            mask[i, : len(input_ids[row])] = 1
        yield batch, padded, mask


def in_order(scored, count):
    """Puts batches of (row numbers, logits) into the order of the rows, as probabilities `[N, L]`."""
    rows, logits = zip(*scored)
    exponentials = numpy.exp(numpy.concatenate(logits).astype(numpy.float64))
    probabilities = numpy.empty((count, exponentials.shape[1]), dtype=numpy.float32)
    probabilities[numpy.concatenate(rows)] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def write(table, probabilities, path):
    column = pyarrow.array(list(probabilities), pyarrow.list_(pyarrow.float32()))
    table = table.append_column("probabilities", column)
    table = table.append_column("predicted_label", pyarrow.array(probabilities.argmax(axis=1)))
    pyarrow.parquet.write_table(table.append_column("score", pyarrow.array(probabilities.max(axis=1))), path)
