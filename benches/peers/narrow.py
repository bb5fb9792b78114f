"""Programs as they run on a processor without AVX-512, and so without 8-bit VNNI, for machines that have it.

A program asks `cpuid` what the processor can do and `xgetbv` which registers the system saves, and uses AVX-512 only
where both have it. In the copies made here every `xgetbv` is replaced by three bytes that answer 7: the registers of
AVX2 and no more.
"""

import re
import shutil
import subprocess
from pathlib import Path

XGETBV = bytes.fromhex("0f01d0")
ANSWER_7 = bytes.fromhex("6a0758")  # push 7; pop rax


def narrow(binary):
    """Patches a program or a shared object where it lies."""
    headers = subprocess.run(["objdump", "--headers", "--wide", binary], check=True, capture_output=True, text=True).stdout
    address, offset = (int(n, 16) for n in re.search(r"\s\.text\s+\S+\s+(\S+)\s+\S+\s+(\S+)", headers).groups())
    disassemble = ["objdump", "--disassemble", "--no-show-raw-insn", "--wide", "--section=.text", binary]
    with subprocess.Popen(disassemble, stdout=subprocess.PIPE, text=True) as listing:
        # Line by line: what this process holds, its children are taken to hold.
        found = [match[1] for line in listing.stdout if (match := re.match(r"\s*([0-9a-f]+):\s+xgetbv", line))]
    if listing.returncode != 0:
        raise SystemExit(f"{binary}: objdump failed")
    places = [int(place, 16) - address + offset for place in found]
    if not places:
        raise SystemExit(f"{binary}: no xgetbv was found, so it may not look for AVX-512 with it")
    with open(binary, "r+b") as code:
        for place in places:
            code.seek(place)
            if code.read(len(XGETBV)) != XGETBV:
                raise SystemExit(f"{binary}: no xgetbv at {place:#x}")
            code.seek(place)
            code.write(ANSWER_7)


def narrow_couplet(binary, folder):
    """Gives a narrowed copy of the program."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = Path(shutil.copy(binary, folder / "couplet"))
    narrow(copy)
    return copy


def narrow_onnxruntime(python, folder):
    """Makes a narrowed copy of the package; gives the folder to be put on Python's path."""
    where = "import onnxruntime, os; print(os.path.dirname(onnxruntime.__file__))"
    package = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    shutil.rmtree(folder / "onnxruntime", ignore_errors=True)
    copy = Path(shutil.copytree(package, folder / "onnxruntime"))
    narrow(*copy.glob("capi/onnxruntime_pybind11_state*.so"))
    return folder
