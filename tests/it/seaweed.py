"""Runs a server in a folder of its own until stdin ends, as it does when the tests do, however they end.

    python seaweed.py FOLDER COMMAND...
"""

import shutil
import subprocess
import sys

folder, *command = sys.argv[1:]
with open(f"{folder}/log", "wb") as log:
    server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
try:
    sys.stdin.read()
finally:
    server.kill()
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)
