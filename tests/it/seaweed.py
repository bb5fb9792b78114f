"""Runs a server in a temporary folder until stdin ends, which happens when the test process ends in any way. A line
`kill` kills the server, and a line `start` restarts it on the same files.

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
