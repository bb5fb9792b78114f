"""Makes what a bench needs once and does not count: MRPC as Parquet, a wide model, exported graphs.

prepare.py mrpc TSV OUT.parquet | head ROWS PAIRS OUT.parquet | wide SRC_MODEL DST | export MODEL DST
"""

import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet


def mrpc(tsv, out):
    """Quotes mean nothing in this file, and a byte-order mark opens it."""
    lines = Path(tsv).read_text(encoding="utf-8-sig").rstrip("\n").split("\n")[1:]
    rows = [line.split("\t") for line in lines]
    columns = {"id": range(len(rows)), "sentence1": [r[3] for r in rows], "sentence2": [r[4] for r in rows]}
    pyarrow.parquet.write_table(pyarrow.table({name: list(column) for name, column in columns.items()}), out)


def head(rows, pairs, out):
    table = pyarrow.parquet.read_table(pairs).slice(0, int(rows))
    pyarrow.parquet.write_table(table, out)
    print(len(table))


def wide(source, out):
    """Saves seeded random weights in DistilBERT-base's shape (6 x 768), with the tokenizer of `source`."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(42)
    shape = {"dim": 768, "hidden_dim": 3072, "n_layers": 6, "n_heads": 12}
    config = DistilBertConfig.from_pretrained(source, **shape)
    DistilBertForSequenceClassification(config).half().save_pretrained(out)
    for file in Path(source).iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            shutil.copyfile(file, Path(out) / file.name)


def export(source, out):
    """Writes `f32.onnx` and `int8.onnx`."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    # Eager attention, since ONNX Runtime fuses more of it than of SDPA's decomposition.
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    model.eval().config.return_dict = False
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 10:] = 0
    out = Path(out)
    torch.onnx.export(
        model,
        (torch.full_like(mask, 1000), mask),
        out / "f32.onnx",
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes=(sizes, sizes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    # Seven-bit weights per channel: what ONNX Runtime advises for AVX2; with VNNI as quick, and about as far off.
    quantize_dynamic(out / "f32.onnx", out / "int8.onnx", per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


if __name__ == "__main__":
    {"mrpc": mrpc, "head": head, "wide": wide, "export": export}[sys.argv[1]](*sys.argv[2:])
