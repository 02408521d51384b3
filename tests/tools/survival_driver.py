"""Forks a process for each run of tools/train_net.py, so that many runs import torch once; see test_survival.py.

A line of JSON on standard input, ``{"argv": [...], "out": FILE, "err": FILE, "env": {...}}``, starts a run. Answered
are its process number and, when it has ended, the word ``ended``; after one more line of input, until which no other
process gets that number, its exit status (-9 where it was killed).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType

import torch

from registry import BACKBONES

TOOL = Path(__file__).parents[2] / "tools" / "train_net.py"


def load() -> ModuleType:
    """The tool as a module, with all that it would import on the way, and the kernels of a small network."""
    spec = importlib.util.spec_from_file_location("train_net", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        for kind in module.LISTS:
            module.main(["--list", kind])
    with torch.no_grad():
        BACKBONES.get("resnet8")(10)(torch.zeros(8, 3, 8, 8))
    return module


def become(order: dict[str, object]) -> list[str]:
    """In the child: the streams, the environment and the signals of a process of its own; its arguments."""
    streams = (("/dev/null", os.O_RDONLY), (order["out"], os.O_WRONLY), (order["err"], os.O_WRONLY))
    for number, (name, flags) in enumerate(streams):
        opened = os.open(str(name), flags | (os.O_CREAT | os.O_TRUNC if number else 0), 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.update(order["env"])  # type: ignore[call-overload]
    # A shell that starts the tests in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [str(TOOL), *order["argv"]]  # type: ignore[misc]
    return sys.argv[1:]


def serve() -> list[str]:
    """Fork until the input ends; returns in the children, with their arguments."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            answers.close()
            return become(json.loads(line))
        print(child, file=answers)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        print("ended", file=answers)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)
    os._exit(0)


def run(tool: ModuleType, argv: list[str]) -> int:
    try:
        return int(tool.main(argv))
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    tool = load()
    gc.freeze()
    code = run(tool, serve())
    # What an interpreter does as it ends, but for taking apart each of the modules that were imported: a second of it.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
