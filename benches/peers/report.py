"""The Markdown table, and what must be known to read it: machine and versions."""

import os
import platform
import re
import subprocess
import tomllib
from pathlib import Path
from statistics import median

from engines import HERE, PEERS

FLAGS = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"]
HEADER = "| engine | pairs/s (median) | speed-up of couplet f32 | of couplet int16 | peak MB | largest \\|Δ probability\\| | labels that differ |"


def machine(threads, avx2):
    cpuinfo = Path("/proc/cpuinfo").read_text()
    flags = set(re.search(r"^flags\s*:(.*)", cpuinfo, re.M)[1].split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": re.search(r"^model name\s*:\s*(.*)", cpuinfo, re.M)[1],
        "cores used": f"{threads} of {os.cpu_count()}",
        "flags": ", ".join(f"{flag} {'yes' if flag in flags else 'no'}" for flag in FLAGS),
        **({"used": "as without AVX-512"} if avx2 else {}),
        "memory": f"{memory:.0f} GB",
        "system": platform.platform(),
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def versions(couplet):
    lock = tomllib.loads((HERE / "candle/Cargo.lock").read_text())
    candle = next(p["version"] for p in lock["package"] if p["name"] == "candle-transformers")
    pins = dict(line.split("==") for line in (HERE / "requirements.txt").read_text().split())
    own = subprocess.run([couplet, "--version"], capture_output=True, text=True).stdout.split()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    name = f"{own[-1] if own else '?'} ({commit.stdout.strip() or 'no commit'})"
    return {"couplet": name, "python": platform.python_version(), "candle-transformers": candle} | pins


def ratio(values):
    return f"{median(values):.2f}x ({min(values):.2f}-{max(values):.2f})" if values else ""


def row(name, engine, count):
    title = PEERS[name][0] if name in PEERS else name
    if "refused" in engine:
        return f"| {title} | not accepted: {engine['refused']} |" + " |" * 5
    seconds = median(run["seconds"] for run in engine["runs"])
    peak = max(run["peak_mb"] for run in engine["runs"])
    cells = [title, f"{count / seconds:.1f}", ratio(engine["vs f32"]), ratio(engine["vs int16"]), f"{peak:.0f}"]
    return "| " + " | ".join([*cells, f"{engine['max_delta']:.1e}", str(engine["labels_differ"])]) + " |"


def markdown(result):
    lines = []
    for model in result["models"]:
        lines += [f"### Encoder {model['shape']}, {result['pairs']:,} pairs, {result['rounds']} rounds", ""]
        lines += [HEADER, "|---|---|---|---|---|---|---|"]
        lines += [row(name, engine, result["pairs"]) for name, engine in model["engines"].items()]
        lines.append("")
    lines.append("`1.80x`: couplet took 1/1.80 of that engine's time, start and load included; median (min-max) of the")
    lines.append("rounds' ratios. Differences are from PyTorch f32. A wide model has random weights: read its speed only.")
    for title in ("machine", "versions"):
        lines += ["", "; ".join(f"{key}: {value}" for key, value in result[title].items())]
    return "\n".join(lines)
