"""Who takes part, how each is started, and what one run of it cost."""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

# name: (title, program, graph, longest first)
PEERS = {
    "pipeline": ("transformers `pipeline`, batch 32", "hf_pipeline.py", None, False),
    "pytorch": ("PyTorch, padded to the longest in the batch", "pytorch.py", None, False),
    "pytorch-sorted": ("PyTorch, length-sorted", "pytorch.py", None, True),
    "cross-encoder": ("sentence-transformers CrossEncoder", "cross_encoder.py", None, False),
    "ort": ("ONNX Runtime f32", "ort.py", "f32.onnx", False),
    "ort-sorted": ("ONNX Runtime f32, length-sorted", "ort.py", "f32.onnx", True),
    "ort-int8-sorted": ("ONNX Runtime dynamic int8, length-sorted", "ort.py", "int8.onnx", True),
    "openvino-sorted": ("OpenVINO f32, length-sorted", "ov.py", "f32.onnx", True),
    "candle": ("candle-transformers' DistilBERT", None, None, False),
}

PIPELINE = """\
name = "bench"
[tables]
pairs = {pairs}
[source]
sql = "SELECT id, sentence1, sentence2 FROM pairs"
id = "id"
text = ["sentence1", "sentence2"]
[model]
uri = {model}
max_length = 128
precision = {precision}
[sink]
uri = {out}
"""


@dataclass
class Run:
    seconds: float
    peak_mb: float


class Failed(Exception):
    def __init__(self, command, code, log):
        super().__init__(f"{' '.join(map(str, command))} exited {code}:\n{log[-2000:]}")
        self.code, self.log = code, log


def measure(command, threads, directory):
    """Runs a process in an emptied directory; wall time and peak memory are those of all of it.

    Linux counts the parent's memory at the fork into the child's peak: the caller must stay small.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    env = os.environ | {
        "PEER_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
    }
    with open(directory / "log", "w") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=directory)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failed(command, process.returncode, (directory / "log").read_text(errors="replace"))
    return Run(seconds, usage.ru_maxrss / 1024)


def peer(name, python, candle, graphs):
    """Gives `(pairs, model, out) -> command`."""
    _, program, graph, by_length = PEERS[name]
    start = [python, HERE / program] if program else [candle]
    options = (["--graph", graphs / graph] if graph else []) + (["--sorted"] if by_length else [])
    return lambda pairs, model, out: [*start, pairs, model, out, *options]


def couplet(binary, precision, pipelines):
    """Like `peer`; writes the pipeline file that the command names."""

    def command(pairs, model, out):
        values = {"pairs": pairs, "model": model, "precision": precision, "out": out}
        pipeline = pipelines / f"{precision}-{pairs.stem}.toml"
        pipeline.write_text(PIPELINE.format(**{key: json.dumps(str(value)) for key, value in values.items()}))
        return [binary, "run", "--fresh", pipeline]

    return command
