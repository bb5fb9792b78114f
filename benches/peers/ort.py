"""ONNX Runtime on the graph given: f32 or int8, in the order of the file or longest first."""

import onnxruntime

import pairs

args = pairs.arguments()
table, texts = pairs.read(args.pairs)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = pairs.THREADS
session = onnxruntime.InferenceSession(args.graph, options, providers=["CPUExecutionProvider"])


def score():
    for rows, input_ids, mask in pairs.batches(texts, args.model, args.sorted):
        yield rows, session.run(["logits"], {"input_ids": input_ids, "attention_mask": mask})[0]


pairs.write(table, pairs.in_order(score(), len(texts)), args.out)
