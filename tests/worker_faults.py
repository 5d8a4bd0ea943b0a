"""Makes worker processes die at a chosen moment: `sitecustomize.py` in a folder on their PYTHONPATH lays the trap."""

from __future__ import annotations

import os
from pathlib import Path

# It patches only what any worker needs: the connection to its parent and the timer that is set when a task begins.
TRAP = """
import os, signal, struct, sys, time
from multiprocessing.connection import Connection

STAGE, HOW, VICTIM, TIMES, FOLDER = {stage!r}, {how!r}, {victim!r}, {times}, {folder!r}
last_task = None


def die():
    for number in range(TIMES):
        try:
            os.close(os.open(f"{{FOLDER}}/died{{number}}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        print("first words\\nlast words", file=sys.stderr, flush=True)
        os._exit(int(HOW)) if HOW.isdigit() else os.kill(os.getpid(), getattr(signal, HOW))


def is_last(message):
    return type(message).__name__ == "_Last"


def recv(self):
    global last_task
    if STAGE == "idle" and last_task is None:
        die()
    message = real_recv(self)
    if hasattr(message, "video_id"):
        last_task = message.video_id
    return message


def send(self, message):
    if is_last(message) and last_task == VICTIM:
        if STAGE == "mid-message":
            os.write(self.fileno(), struct.pack("!i", 1000) + b"half")
            die()
        if STAGE in ("nonsense", "nonsense alive"):
            self.send_bytes(b"no pickle")
            die() if STAGE == "nonsense" else time.sleep(600)
    real_send(self, message)
    if is_last(message) and last_task == VICTIM and STAGE == "between":
        die()


def setitimer(which, seconds, *more):
    if seconds and STAGE == "decoding" and last_task == VICTIM:
        die()
    return real_setitimer(which, seconds, *more)


if sys.orig_argv[1:2] != ["-m"] and "har_pipeline.video" in "".join(sys.orig_argv):
    real_recv, real_send, real_setitimer = Connection.recv, Connection.send, signal.setitimer
    Connection.recv, Connection.send, signal.setitimer = recv, send, setitimer
    if STAGE == "starting":
        die()
"""


def lay_trap(folder: Path, stage: str, how: str, *, victim: str = "v1", times: int = 1) -> str:
    """Return the PYTHONPATH with which the first `times` workers that come to `stage` die there.

    stage: starting; idle (before the first task is read); between (after the last message of `victim`); decoding,
    mid-message, nonsense (bytes that are no message), nonsense alive (it does not even end): of `victim`.
    how: an exit code, or the name of a signal.
    """
    folder.mkdir()
    text = TRAP.format(stage=stage, how=how, victim=victim, times=times, folder=str(folder))
    (folder / "sitecustomize.py").write_text(text)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
