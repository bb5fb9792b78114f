"""Makes gradients.json and gradients.safetensors: what PyTorch says about losses, gradients and ten steps of training.

Needs the tiny checkpoints of this folder, and the packages that make_goldens.py names:

  python tests/it/goldens/make_gradients.py

Everything is float32 on one CPU thread, padded to the longest, without dropout. The heads that the tiny checkpoints do
not have are the formula in `formula`. gradients.safetensors holds the gradient of every parameter for two objectives,
without the rows of zeros at the end of a table; gradients.json has for all objectives the loss, and for every
parameter the norm of its gradient and its dot products with two waves, which `sketch` computes.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

HERE = Path(__file__).resolve().parent
MODELS = ["tiny-bert", "tiny-distilbert"]
LENGTHS = [7, 23, 1, 12, 16, 5]
VOCABULARY = 60
IN_FULL = ["classification", "masked_words"]


def formula(name: str, shape: torch.Size) -> torch.Tensor:
    """The weights of a head: 0.2 sin(0.37 i^2 + length of the name), around 1 for scales of a layer norm."""
    i = torch.arange(shape.numel(), dtype=torch.float64)
    wave = 0.2 * torch.sin(0.37 * i * i + len(name))
    is_scale = "norm" in name.lower() and name.endswith("weight")
    return ((1 if is_scale else 0) + wave).to(torch.float32).view(shape)


def examples() -> list[dict]:
    batch = []
    for e, length in enumerate(LENGTHS):
        # Never 0: PyTorch does not learn the embedding of padding.
        ids = [1 + (37 * t + 11 * e + t * t) % VOCABULARY for t in range(length)]
        types = [int(2 * t > length) for t in range(length)]
        words = [[t, (13 * t + e) % 787] for t in range(length) if (t + e) % 3 == 1]
        batch.append(
            {
                "input_ids": ids,
                "token_type_ids": types,
                "label": e % 3,
                "value": 0.5 * e - 1.25,
                "labels": [float((e >> bit) & 1) for bit in range(3)],
                "words": words,
            }
        )
    return batch


def padded(batch: list[dict], has_token_types: bool) -> dict[str, torch.Tensor]:
    longest = max(len(example["input_ids"]) for example in batch)
    inputs = {key: torch.zeros(len(batch), longest, dtype=torch.long) for key in ("input_ids", "attention_mask")}
    if has_token_types:
        inputs["token_type_ids"] = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, example in enumerate(batch):
        length = len(example["input_ids"])
        inputs["attention_mask"][row, :length] = 1
        for key in inputs.keys() - {"attention_mask"}:
            inputs[key][row, :length] = torch.tensor(example[key])
    return inputs


def load(name: str, objective: str) -> torch.nn.Module:
    if objective == "masked_words":
        model = AutoModelForMaskedLM.from_pretrained(HERE / name, attn_implementation="eager", dtype=torch.float32)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            HERE / name,
            num_labels=1 if objective == "regression" else 3,
            ignore_mismatched_sizes=True,
            attn_implementation="eager",
            dtype=torch.float32,
        )
    heads = ("classifier", "vocab_", "cls.")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith(heads):
                parameter.copy_(formula(parameter_name, parameter.shape))
    return model.eval()


def loss_of(model: torch.nn.Module, objective: str, batch: list[dict]) -> torch.Tensor:
    logits = model(**padded(batch, model.config.model_type == "bert")).logits
    labels = torch.tensor([example["label"] for example in batch])
    if objective == "classification":
        return torch.nn.functional.cross_entropy(logits, labels)
    if objective == "weighted_smoothed":
        weight = torch.tensor([0.5, 2.0, 1.25])
        return torch.nn.functional.cross_entropy(logits, labels, weight=weight, label_smoothing=0.1)
    if objective == "regression":
        values = torch.tensor([example["value"] for example in batch])
        return torch.nn.functional.mse_loss(logits.squeeze(1), values)
    if objective == "multi_label":
        targets = torch.tensor([example["labels"] for example in batch])
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    hidden = torch.full(logits.shape[:2], -100)
    for row, example in enumerate(batch):
        for at, word in example["words"]:
            hidden[row, at] = word
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), hidden.flatten())


def sketch(values: torch.Tensor) -> list[float]:
    """The norm, and the dot products with sin(i + 1) and cos(1.7 i)."""
    flat = values.detach().flatten().to(torch.float64)
    i = torch.arange(flat.numel(), dtype=torch.float64)
    return [flat.norm().item(), (flat * torch.sin(i + 1)).sum().item(), (flat * torch.cos(1.7 * i)).sum().item()]


def without_zero_rows_at_the_end(gradient: torch.Tensor) -> torch.Tensor:
    if gradient.dim() == 1:
        return gradient
    used = gradient.abs().sum(1).nonzero().flatten().tolist()
    return gradient[: max(used, default=0) + 1].clone()


def gradients(batch: list[dict]) -> tuple[list[dict], dict[str, torch.Tensor]]:
    cases, tensors = [], {}
    for name in MODELS:
        for objective in ["classification", "weighted_smoothed", "regression", "multi_label", "masked_words"]:
            model = load(name, objective)
            loss = loss_of(model, objective, batch)
            loss.backward()
            sketches = {}
            for parameter_name, parameter in model.named_parameters():
                if parameter.grad is None:
                    continue
                sketches[parameter_name] = sketch(parameter.grad)
                if objective in IN_FULL:
                    tensors[f"{name}/{objective}/{parameter_name}"] = without_zero_rows_at_the_end(parameter.grad)
            cases.append({"model": name, "objective": objective, "loss": loss.item(), "gradients": sketches})
    return cases, tensors


def trajectory(name: str, schedule: str, batch: list[dict]) -> dict:
    """Ten steps on five examples each: AdamW with decay groups, warm-up of three steps, clipped at norm 0.5."""
    model = load(name, "classification")
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    decayed = [p for n, p in model.named_parameters() if not n.endswith(".bias") and "norm" not in n.lower()]
    others = [p for n, p in model.named_parameters() if n.endswith(".bias") or "norm" in n.lower()]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    make = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[schedule]
    scheduler = make(optimizer, 3, 10)
    steps = []
    for step in range(10):
        rate = optimizer.param_groups[0]["lr"]
        optimizer.zero_grad()
        loss = loss_of(model, "classification", [batch[(step + e) % len(batch)] for e in range(5)])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        steps.append([loss.item(), norm.item(), rate])
    changes = {key: sketch(value - before[key]) for key, value in model.named_parameters()}
    return {"model": name, "schedule": schedule, "steps": steps, "changes": changes}


def main() -> None:
    torch.set_num_threads(1)
    batch = examples()
    cases, tensors = gradients(batch)
    trajectories = [trajectory("tiny-bert", "linear", batch), trajectory("tiny-distilbert", "cosine", batch)]
    document = {"examples": batch, "cases": cases, "trajectories": trajectories}
    (HERE / "gradients.json").write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="ascii")
    save_file(tensors, HERE / "gradients.safetensors")


if __name__ == "__main__":
    main()
