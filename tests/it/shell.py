"""Types into a program on a pseudo-terminal, and waits for the expected output.

The steps are pairs of keys and a text, in SHELL_STEPS as JSON. The keys are pressed, and the text must appear within a
minute; with null, the keys are only pressed. The text "END" means that the program ends with exit code 0. Instead of
keys, "SLEEP" waits for a while, and "AWAIT" waits for a file whose name is the text.
"""

import json
import os
import pty
import re
import select
import sys
import time

steps = json.loads(os.environ["SHELL_STEPS"])
child, terminal = pty.fork()
if child == 0:
    os.environ.update(TERM="xterm", COLUMNS="200", LINES="50", NO_COLOR="1")
    os.execv(sys.argv[1], sys.argv[1:])
import fcntl, struct, termios

fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
seen = ""
everything = ""


def read(seconds):
    global seen, everything
    ready, _, _ = select.select([terminal], [], [], seconds)
    if not ready:
        return True
    try:
        data = os.read(terminal, 65536)
    except OSError:
        return False
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
    seen += text
    everything += text
    return bool(data)


def fail(why):
    print(everything)
    print("FAILED:", why)
    os.kill(child, 9)
    sys.exit(1)


for keys, expected in steps:
    if keys == "SLEEP":
        read(0.5)
        time.sleep(2)
        continue
    if keys == "AWAIT":
        deadline = time.time() + 60
        while not os.path.exists(expected):
            if time.time() > deadline or not read(0.1):
                fail(f"there was no file {expected!r}")
        continue
    seen = ""
    os.write(terminal, keys.encode())
    deadline = time.time() + 60
    if expected == "END":
        while read(1) and time.time() < deadline:
            pass
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            fail(f"it ended with {os.waitstatus_to_exitcode(status)}")
        print(everything)
        sys.exit(0)
    if expected is None:
        read(0.3)
        continue
    while expected not in seen:
        if time.time() > deadline:
            fail(f"{expected!r} did not come after {keys!r}")
        if not read(1):
            fail(f"it ended before {expected!r}")
    # The prompt: from here on keys are read again.
    while "couplet> " not in seen[seen.rindex(expected):] and not keys.endswith("\t") and keys != "\x1b[A":
        if time.time() > deadline or not read(1):
            fail(f"no prompt after {expected!r}")
fail("the steps have no END")
