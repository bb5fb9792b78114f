"""sentence-transformers' CrossEncoder, which sorts by length itself."""

import torch
from sentence_transformers import CrossEncoder

import pairs

torch.set_num_threads(pairs.THREADS)
args = pairs.arguments()
table, texts = pairs.read(args.pairs)
model = CrossEncoder(
    args.model,
    device="cpu",
    max_length=pairs.MAX_LENGTH,
    model_kwargs={"dtype": torch.float32},
    processor_kwargs={"model_input_names": ["input_ids", "attention_mask"]},
)
scored = model.predict(texts, batch_size=pairs.BATCH, activation_fn=torch.nn.Identity(), apply_softmax=True)
pairs.write(table, scored, args.out)
