"""OpenVINO on the graph given, in f32."""

import openvino

import pairs

args = pairs.arguments()
table, texts = pairs.read(args.pairs)
# Without the precision hint OpenVINO takes bf16 where the processor has it.
settings = {"INFERENCE_NUM_THREADS": pairs.THREADS, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
model = openvino.Core().compile_model(args.graph, "CPU", settings)
request = model.create_infer_request()


def score():
    for rows, input_ids, mask in pairs.batches(texts, args.model, args.sorted):
        result = request.infer({"input_ids": input_ids, "attention_mask": mask})
        yield rows, result["logits"].copy()


pairs.write(table, pairs.in_order(score(), len(texts)), args.out)
