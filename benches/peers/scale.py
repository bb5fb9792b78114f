#!/usr/bin/env python3
"""How couplet alone scales: pairs a second without a model to speak of, and memory from ten thousand rows to a million.

    python3 benches/peers/scale.py --model ../shared/models/minilm-mrpc \
        --mrpc ../shared/data/mrpc/msr_paraphrase_train.txt --rows 10000,100000,1000000

Rows are MRPC's pairs over and over, each time with another number at their ends, so that no two are equal. The model
is a DistilBERT of one layer and 32 columns with seeded random weights and the tokenizer of `--model`: what it costs is
reading, tokenizing, packing and writing. `--encoder DIR` takes a real one instead; `--words N` cuts the sentences.
Needs the packages of requirements.txt.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
from safetensors.numpy import save_file

from engines import couplet, measure
from prepare import mrpc

ROOT = Path(__file__).resolve().parents[2]
DIM, HIDDEN, POSITIONS = 32, 64, 512


def tiny(source, out):
    """Saves a one-layer DistilBERT with the tokenizer of `source`."""
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    shape = {"dim": DIM, "hidden_dim": HIDDEN, "n_layers": 1, "n_heads": 2, "max_position_embeddings": POSITIONS}
    (out / "config.json").write_text(json.dumps(config | shape))
    random = numpy.random.default_rng(42)
    tensors = {}

    def dense(name, outputs, inputs):
        tensors[f"{name}.weight"] = random.normal(0, 0.2, (outputs, inputs)).astype(numpy.float32)
        tensors[f"{name}.bias"] = numpy.zeros(outputs, numpy.float32)

    def norm(name):
        tensors[f"{name}.weight"] = numpy.ones(DIM, numpy.float32)
        tensors[f"{name}.bias"] = numpy.zeros(DIM, numpy.float32)

    dense("distilbert.embeddings.word_embeddings", config["vocab_size"], DIM)
    dense("distilbert.embeddings.position_embeddings", POSITIONS, DIM)
    for table in ("word", "position"):
        del tensors[f"distilbert.embeddings.{table}_embeddings.bias"]
    norm("distilbert.embeddings.LayerNorm")
    layer = "distilbert.transformer.layer.0"
    for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
        dense(f"{layer}.attention.{name}", DIM, DIM)
    dense(f"{layer}.ffn.lin1", HIDDEN, DIM)
    dense(f"{layer}.ffn.lin2", DIM, HIDDEN)
    norm(f"{layer}.sa_layer_norm")
    norm(f"{layer}.output_layer_norm")
    dense("pre_classifier", DIM, DIM)
    dense("classifier", len(config["id2label"]), DIM)
    save_file(tensors, out / "model.safetensors")
    for file in source.iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            shutil.copyfile(file, out / file.name)


def enlarge(pairs, rows, words, out):
    table = pyarrow.parquet.read_table(pairs).to_pydict()
    cut = [[" ".join(s.split()[:words]) if words else s for s in table[f"sentence{i}"]] for i in (1, 2)]
    base = len(cut[0])
    schema = pyarrow.schema({"id": pyarrow.int64(), "sentence1": pyarrow.string(), "sentence2": pyarrow.string()})
    with pyarrow.parquet.ParquetWriter(out, schema) as writer:
        for start in range(0, rows, base):
            count, number = min(base, rows - start), start // base
            batch = {"id": list(range(start, start + count))}
            for i in (1, 2):
                batch[f"sentence{i}"] = [f"{sentence} {number}" for sentence in cut[i - 1][:count]]
            writer.write_table(pyarrow.table(batch))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--couplet", type=Path, default=ROOT / "target/release/couplet", metavar="PATH")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="whose tokenizer is used")
    parser.add_argument("--mrpc", type=Path, required=True, metavar="TSV", help="msr_paraphrase_train.txt")
    parser.add_argument("--encoder", type=Path, metavar="DIR", help="a real checkpoint instead of the tiny one")
    parser.add_argument("--rows", default="10000,100000,1000000", metavar="A,B")
    parser.add_argument("--words", type=int, default=0, metavar="N", help="words of a sentence; all if not given")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    args = parser.parse_args()
    work = ROOT / "target/peers/scale"
    work.mkdir(parents=True, exist_ok=True)
    if not args.encoder:
        tiny(args.model, work / "tiny")
    encoder = (args.encoder or work / "tiny").resolve()
    weights = (encoder / "model.safetensors").stat().st_size / 1e6
    mrpc(args.mrpc, work / "mrpc.parquet")
    print(f"weights on disk: {weights:.0f} MB\n\n| rows | seconds | pairs/s | peak MB |\n|---|---|---|---|")
    for rows in map(int, args.rows.split(",")):
        pairs = work / f"pairs-{rows}.parquet"
        enlarge(work / "mrpc.parquet", rows, args.words, pairs)
        command = couplet(args.couplet.resolve(), args.precision, work)(pairs, encoder, work / "out/out.parquet")
        run = measure(command, args.threads, work / "out")
        print(f"| {rows:,} | {run.seconds:.1f} | {rows / run.seconds:,.0f} | {run.peak_mb:.0f} |", flush=True)


if __name__ == "__main__":
    main()
