"""Runs a server in a folder of its own until stdin ends, as it does when the tests do, however they end. A line `kill`
kills it, and a line `start` starts it again on what it left.

    python seaweed.py FOLDER COMMAND...
"""

import shutil
import subprocess
import sys

folder, *command = sys.argv[1:]


def start():
    with open(f"{folder}/log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


server = start()
try:
    for line in sys.stdin:
        if line == "kill\n":
            server.kill()
            server.wait()
        elif line == "start\n":
            server = start()
finally:
    server.kill()
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)
