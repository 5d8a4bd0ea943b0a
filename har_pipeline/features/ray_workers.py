"""Workers that are actors of a Ray cluster: of one that runs already, or of one for this job on this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import ExtractionError
from har_pipeline.core.processes import num_cores
from har_pipeline.features.options import EngineOptions
from har_pipeline.features.work import Hello, Message, Order, serve
from har_pipeline.features.workers import WAIT_S, Death
from har_pipeline.video.process import MAX_STARTS, Task

# How long an actor waits for something to tell before it answers with nothing.
POLL_S = 5.0
# The paths of sockets may have 107 bytes, of which Ray takes up to 70 below its folder.
LONGEST_TEMP = 30
OBJECT_STORE_BYTES = 80 * 2**20  # the smallest: only tasks and messages travel
# Decide how many threads a sum is shared by; Ray sets the first of them itself.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")
# What Ray would print, send home or start, and need not.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@dataclass(frozen=True, slots=True)
class ActorPlan:
    """How many workers there are, and what each has of its node."""

    count: int
    cpus: float
    gpus: float


def plan_actors(nodes: Sequence[tuple[float, float]], options: EngineOptions, device: str) -> ActorPlan:
    """Return the workers for the nodes of a cluster, each with its (CPUs, GPUs).

    By default one for each GPU, with its share of the node's CPUs; without GPUs, or for `cpu`, one for each node.
    Raises: ExtractionError if the cluster has no room for them.
    """
    gpus = options.ray_gpus
    if gpus is None:
        gpus = 1.0 if device != "cpu" and any(node[1] >= 1 for node in nodes) else 0.0
    if gpus:
        # A worker's share of a GPU is of one GPU.
        shares = [(cpus, int(own) * int(1 / gpus + 1e-6) if gpus < 1 else int(own / gpus)) for cpus, own in nodes]
        shares = [share for share in shares if share[1]]
        if not shares:
            raise ExtractionError(f"no node of the Ray cluster has {gpus:g} GPUs: give --ray-gpus 0 to use its CPUs")
        cpus = min(cpus / workers for cpus, workers in shares)
        room = sum(workers for _, workers in shares)
    else:
        most = max((cpus for cpus, _ in nodes), default=0.0)
        # A small node, such as one that only manages the others, does not set the size for all.
        cpus = min((cpus for cpus, _ in nodes if cpus >= most / 2), default=0.0)
        if options.ray_workers is not None:
            sizes = range(int(most), 0, -1)
            cpus = next((one for one in sizes if _room(nodes, one) >= options.ray_workers), 1)
        room = _room(nodes, cpus)
    if not room:
        raise ExtractionError("the Ray cluster has no CPUs for a worker")
    count = room if options.ray_workers is None else options.ray_workers
    if count > room:
        each = f"{gpus:g} GPUs" if gpus else "a CPU"
        raise ExtractionError(f"the Ray cluster has room for {room} workers with {each} each, not for {count}")
    return ActorPlan(count, int(cpus) if cpus >= 1 else cpus, gpus)


def _room(nodes: Sequence[tuple[float, float]], cpus: float) -> int:
    return sum(int(own / cpus) for own, _ in nodes) if cpus else 0


class EngineActor:
    """A worker's side: a thread works, the actor's methods carry its messages."""

    def __init__(self, order: Order, cores: int, threads: dict[str, str]) -> None:
        # Before torch is imported: as many threads as in a single process on this machine, so that the sums are the same.
        for name in THREADS:
            os.environ.pop(name, None)
        os.environ.update({"OMP_WAIT_POLICY": "PASSIVE"} | threads)
        self._inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=serve, args=(order, cores, self._inbox.get, self._outbox.put), daemon=True).start()

    def give(self, task: Task | None) -> None:
        """Take a task."""
        self._inbox.put(task)

    def tell(self) -> list[Message]:
        """Return what there is to tell, waiting for it for a while."""
        found: list[Message] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._outbox.get(timeout=POLL_S))
            while True:
                found.append(self._outbox.get_nowait())
        return found


class _Handle:
    """The driver's side of an actor."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.name = actor, "a Ray worker that was not ready yet"
        self.ask()

    def ask(self) -> None:
        """Ask for the next messages."""
        self.pending = self.actor.tell.options(concurrency_group="tell").remote()


class RayActors:
    """A `Pool` of Ray actors. Raises: ExtractionError if Ray is missing, or the cluster is, or has no room.

    device: cpu, or auto: GPUs where the cluster has some.
    """

    def __init__(self, options: EngineOptions, device: str = "auto") -> None:
        try:
            import ray
        except ImportError as error:
            raise ExtractionError("--engine ray needs the package: pip install 'har-pipeline[ray]'") from error
        self._ray: Any = ray
        self._handles: list[_Handle] = []
        self._ended = contextlib.ExitStack()
        try:
            self._connect(options, device)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._plan = plan_actors([(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in nodes], options, device)
        except BaseException:
            self.close()
            raise
        # Two threads: a method that waits does not keep the other from its turn.
        groups: dict[str, Any] = {"concurrency_groups": {"give": 1, "tell": 1}}
        self._actor = self._ray.remote(**groups)(EngineActor)

    @property
    def devices(self) -> Sequence[str]:
        """The device of each worker to start."""
        return ["cuda" if self._plan.gpus else "cpu"] * self._plan.count

    def _connect(self, options: EngineOptions, device: str) -> None:
        address = options.ray_address or os.environ.get("RAY_ADDRESS")
        own = address in (None, "local")
        for starts in range(1, MAX_STARTS + 1):
            try:
                self._try_to_connect(None if own else address, options, device)
                return
            except Exception as error:
                self._ended.close()
                # Ray gives its processes half a minute to start, which may be too short on a busy machine.
                if not own or starts == MAX_STARTS or "timed out" not in str(error):
                    what = "no Ray cluster can be started" if own else f"no Ray cluster at {address}"
                    raise ExtractionError(f"{what} ({_first_line(error)})") from error

    def _try_to_connect(self, address: str | None, options: EngineOptions, device: str) -> None:
        """Connect to a cluster; None: start one. What is to be undone at the end, or after an error, is in `self._ended`."""
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        self._ray._private.worker._worker_logs_enabled = False  # it tells of dead workers on stdout, where results are
        how: dict[str, Any] = {"address": address}
        environment = dict(QUIET)
        folder = Path(tempfile.mkdtemp(prefix="har-", dir=_short_temp()))
        self._ended.callback(shutil.rmtree, folder, ignore_errors=True)
        if address is None:
            # A cluster of our own has a key of its own, and files in the current folder stand in for no module.
            environment |= {"RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONSAFEPATH": "1"}
            environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
            how = {
                "address": "local",
                "num_cpus": max(num_cores(), options.ray_workers or 1),
                "num_gpus": 0 if device == "cpu" else None,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": str(folder),
            }
            self._ended.enter_context(_no_child_left())
        self._ended.enter_context(_environment(environment))
        self._ended.callback(self._ray.shutdown)
        before = signal.getsignal(signal.SIGTERM)
        try:
            # Ray puts the current folder on the workers' path.
            with warnings.catch_warnings(), contextlib.chdir(folder):
                warnings.simplefilter("ignore")
                self._ray.init(**how, log_to_driver=False, configure_logging=False, logging_level=logging.CRITICAL)
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray sets its own

    def start(self, order: Order) -> Hashable:
        """Ask the cluster for a worker, which comes when there is room."""
        plan = self._plan
        chosen = {name: os.environ[name] for name in THREADS if os.environ.get(name)}
        actor = self._actor.options(num_cpus=plan.cpus, num_gpus=plan.gpus, max_restarts=0)
        handle = _Handle(actor.remote(order, max(1, int(plan.cpus)), chosen))
        self._handles.append(handle)
        return handle

    def send(self, worker: Hashable, task: Task | None) -> None:
        """Send to a worker, which may be gone."""
        assert isinstance(worker, _Handle)
        worker.actor.give.options(concurrency_group="give").remote(task)

    def receive(self) -> list[tuple[Hashable, Message | Death]]:
        """Wait for messages, and return them."""
        by_ref = {handle.pending: handle for handle in self._handles}
        try:
            ready, others = self._ray.wait(list(by_ref), num_returns=1, timeout=WAIT_S)
            if others:
                ready += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise ExtractionError(f"the Ray cluster does not answer any more ({_first_line(error)})") from error
        found: list[tuple[Hashable, Message | Death]] = []
        for ref in ready:
            handle = by_ref[ref]
            try:
                messages = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                if "owner has died" in str(error):  # this process, as Ray sees it: no other worker would come
                    raise ExtractionError("Ray on this machine has ended; the same command goes on") from error
                self._handles.remove(handle)
                found.append((handle, Death(cause_of_death(str(error)))))
                continue
            for message in messages:
                if isinstance(message, Hello):
                    handle.name = f"the Ray worker on {message.host}"
                found.append((handle, message))
            handle.ask()
        return found

    def where(self, worker: Hashable) -> str:
        """Return what users call a worker."""
        assert isinstance(worker, _Handle)
        return worker.name

    def close(self) -> None:
        """End the actors, and the cluster if it is our own."""
        for handle in self._handles:
            with contextlib.suppress(Exception):  # it may be gone
                self._ray.kill(handle.actor)
        self._handles.clear()
        self._ended.close()


def cause_of_death(text: str) -> str:
    """Return in a few words why an actor is gone, from Ray's pages of text."""
    if "running low on memory" in text or "OutOfMemory" in text:
        return "its node ran out of memory"
    if "connection error code" in text:
        return "its process was killed or crashed (out of memory?)"
    if re.search(r"node (has )?died|node was (terminated|lost)|marked dead", text, re.IGNORECASE):
        return "its node is gone"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _short_temp() -> str:
    found = tempfile.gettempdir()
    return found if len(os.fsencode(found)) <= LONGEST_TEMP else "/tmp"


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment in this context; what the user has set among Ray's own stays."""
    before = {name: os.environ.get(name) for name in (*variables, "RAY_AUTH_MODE")}  # the last one is set by Ray
    os.environ.update({name: value for name, value in variables.items() if not (name in QUIET and before[name])})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_child_left() -> Iterator[None]:
    """End the child processes that were started in this context: those that Ray forgets when its start is interrupted."""
    import psutil

    own = psutil.Process()
    before = set(own.children(recursive=True))
    try:
        yield
    finally:
        for child in set(own.children(recursive=True)) - before:
            with contextlib.suppress(psutil.Error):
                child.kill()
