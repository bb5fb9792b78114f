#!/usr/bin/env python3
"""Runs couplet and its peers in turn on the same pairs, and prints one Markdown table. See README.md."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import report
from engines import HERE, PEERS, Failed, couplet, measure, peer
from narrow import narrow_couplet, narrow_onnxruntime

ROOT = HERE.parents[1]
WARM_ROWS = 64
WRONG_CONFIG = 2  # couplet's exit code
TOLERANCE = 1e-3  # of a probability
# Integer arithmetic, and candle's DistilBERT, which takes GELU's tanh approximation for erf.
INEXACT = {"couplet int16", "ort-int8-sorted", "candle"}
NARROWED = {"ort", "ort-sorted", "ort-int8-sorted"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--couplet", type=Path, default=ROOT / "target/release/couplet", metavar="PATH")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a DistilBERT checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pairs", type=Path, metavar="PARQUET", help="with id, sentence1, sentence2")
    source.add_argument("--mrpc", type=Path, metavar="TSV", help="msr_paraphrase_train.txt")
    parser.add_argument("--limit", type=int, metavar="ROWS", help="only the first ROWS pairs")
    parser.add_argument("--wide", action="store_true", help="also a 6 x 768 encoder with random weights")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--avx2", action="store_true", help="as without AVX-512; ONNX Runtime is the only peer then")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, written after each peer")
    parser.add_argument("--venv", type=Path, default=ROOT / "target/peers-venv", metavar="DIR")
    args = parser.parse_args()
    args.peers = args.peers.split(",")
    if args.avx2 and args.peers == list(PEERS):
        args.peers = [name for name in PEERS if name in NARROWED]
    if args.avx2 and (others := set(args.peers) - NARROWED):
        parser.error(f"--avx2: not with {', '.join(sorted(others))}; allowed are {', '.join(sorted(NARROWED))}")
    if unknown := set(args.peers) - set(PEERS):
        parser.error(f"--peers: unknown {', '.join(sorted(unknown))}; allowed are {', '.join(PEERS)}")
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    return args


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def call(*command, **options):
    subprocess.run(command, check=True, stdout=sys.stderr, **options)


def environment(venv):
    """Installs the pinned peers, again when the pins changed; gives the venv's Python."""
    python, pins, installed = venv / "bin/python", HERE / "requirements.txt", venv / "peers-installed.txt"
    if not python.exists():
        call(sys.executable, "-m", "venv", venv)
    if not installed.exists() or installed.read_text() != pins.read_text():
        call(python, "-m", "pip", "install", "--quiet", "-r", pins)
        installed.write_text(pins.read_text())
    return python


def build_candle(work):
    manifest, target = HERE / "candle/Cargo.toml", work / "candle"
    env = os.environ | {"RUSTFLAGS": "-C target-cpu=native"}
    call("cargo", "build", "--release", "--locked", "--manifest-path", manifest, "--target-dir", target, env=env)
    return target / "release/candle-peer"


class Bench:
    """One model: its engines, their runs, and how far each is from PyTorch."""

    def __init__(self, args, python, candle, pairs, warm, model, work):
        self.args, self.python, self.pairs, self.warm, self.model, self.work = args, python, pairs, warm, model, work
        config = json.loads((model / "config.json").read_text())
        self.shape = f"{config['n_layers']} x {config['dim']}"
        self.engines = {}
        self.commands = {f"couplet {p}": couplet(args.couplet, p, work) for p in ("f32", "int16")}
        self.commands |= {name: peer(name, python, candle, work) for name in args.peers}

    def measure(self, name, pairs):
        directory = self.work / "out" / name.replace(" ", "-")
        return measure(self.commands[name](pairs, self.model, directory / "out.parquet"), self.args.threads, directory)

    def prepare(self):
        """Exports the graphs, lets PyTorch say what is right, and runs each engine once on a few pairs."""
        call(self.python, HERE / "prepare.py", "export", self.model, self.work)
        for name in self.commands:
            self.engines[name] = {"runs": [], "vs f32": [], "vs int16": []}
            try:
                self.measure(name, self.warm)
            except Failed as failed:
                if name != "couplet int16" or failed.code != WRONG_CONFIG:
                    raise
                self.engines[name]["refused"] = " ".join(failed.log.replace("|", " ").split())[:120]
        self.commands["reference"] = peer("pytorch", self.python, None, None)
        self.measure("reference", self.pairs)

    def run(self, name):
        say(f"{self.shape}: {name}")
        run = self.measure(name, self.pairs)
        engine = self.engines[name]
        engine["runs"].append(asdict(run))
        if "max_delta" not in engine:
            out = self.work / "out" / name.replace(" ", "-") / "out.parquet"
            reference = self.work / "out/reference/out.parquet"
            compared = subprocess.run([self.python, HERE / "agree.py", reference, out], check=True, capture_output=True)
            engine |= json.loads(compared.stdout)
        return run.seconds

    def round(self, name):
        """The peer runs between couplet's two, so a machine that slows down slows down for all."""
        f32, seconds = self.run("couplet f32"), self.run(name)
        self.engines[name]["vs f32"].append(seconds / f32)
        if "refused" not in self.engines["couplet int16"]:
            int16 = self.run("couplet int16")
            self.engines[name]["vs int16"].append(seconds / int16)
            self.engines["couplet f32"]["vs int16"].append(f32 / int16)


def main():
    args = arguments()
    work = ROOT / "target/peers"
    work.mkdir(parents=True, exist_ok=True)
    args.couplet, args.model = args.couplet.resolve(strict=True), args.model.resolve(strict=True)
    python = environment(args.venv)
    if args.avx2:
        args.couplet = narrow_couplet(args.couplet, work / "avx2")
        os.environ["PYTHONPATH"] = str(narrow_onnxruntime(python, work / "avx2"))
    candle = build_candle(work) if "candle" in args.peers else None
    prepare = [python, HERE / "prepare.py"]

    pairs, warm = work / "pairs.parquet", work / "warm.parquet"
    if args.mrpc:
        call(*prepare, "mrpc", args.mrpc, pairs)
    head = [*prepare, "head", str(args.limit or sys.maxsize), args.pairs or pairs, pairs]
    rows = int(subprocess.run(head, check=True, stdout=subprocess.PIPE).stdout)
    call(*prepare, "head", str(WARM_ROWS), pairs, warm)
    models = [args.model]
    if args.wide:
        call(*prepare, "wide", args.model, work / "wide")
        models.append(work / "wide")

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    result = {"pairs": rows, "rounds": args.rounds, "models": []}
    result |= {"machine": report.machine(args.threads, args.avx2), "versions": report.versions(args.couplet)}
    for number, model in enumerate(models):
        directory = work / str(number)
        directory.mkdir(exist_ok=True)
        bench = Bench(args, python, candle, pairs, warm, model, directory)
        bench.prepare()
        result["models"].append({"shape": bench.shape, "engines": bench.engines})
        for name in args.peers:
            for _ in range(args.rounds):
                bench.round(name)
            if args.json:
                args.json.write_text(json.dumps(result, indent=1))
    print(report.markdown(result))

    exact = [(m["shape"], n, e) for m in result["models"] for n, e in m["engines"].items() if n not in INEXACT]
    off = [f"{n} ({shape}) by {e['max_delta']:.1e}" for shape, n, e in exact if e["max_delta"] > TOLERANCE]
    if off:
        sys.exit(f"not the same probabilities as PyTorch: {'; '.join(off)}")


if __name__ == "__main__":
    main()
