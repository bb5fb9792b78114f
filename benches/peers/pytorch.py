"""PyTorch in plain batches: in the order of the file, or longest first."""

import torch
from transformers import AutoModelForSequenceClassification

import pairs

torch.set_num_threads(pairs.THREADS)
args = pairs.arguments()
table, texts = pairs.read(args.pairs)
model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32).eval()


@torch.inference_mode()
def score():
    for rows, input_ids, mask in pairs.batches(texts, args.model, args.sorted):
        logits = model(input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(mask)).logits
        yield rows, logits.numpy()


pairs.write(table, pairs.in_order(score(), len(texts)), args.out)
