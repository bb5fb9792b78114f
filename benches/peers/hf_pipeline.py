"""transformers' `pipeline`, batch 32."""

import numpy
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import pairs

torch.set_num_threads(pairs.THREADS)
args = pairs.arguments()
table, texts = pairs.read(args.pairs)
model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
# DistilBERT takes no token types; the tokenizer's class is BERT's, which gives them.
tokenizer = AutoTokenizer.from_pretrained(args.model, model_input_names=["input_ids", "attention_mask"])
classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", batch_size=pairs.BATCH)

inputs = [{"text": first, "text_pair": second} for first, second in texts]
probabilities = numpy.empty((len(texts), model.config.num_labels), dtype=numpy.float32)
scored = classify(inputs, top_k=None, function_to_apply="softmax", truncation=True, max_length=pairs.MAX_LENGTH)
for row, scores in enumerate(scored):
    for score in scores:
        probabilities[row, model.config.label2id[score["label"]]] = score["score"]
pairs.write(table, probabilities, args.out)
