"""Looks after one model server: starts it, watches health and memory, restarts it with backoff, stops it.

Runs in its own detached process (`shim`), one thread, standard library only; `spec` says what it is told and what it
tells. It removes nothing and decides nothing about replicas: that is the manager's (`runtime`).
"""

import os
import selectors
import signal
import time
from collections.abc import Callable
from pathlib import Path

from services.cluster.runtimes.local import outcome
from services.cluster.runtimes.local.child import Child, hold_port
from services.cluster.runtimes.local.files import write_json
from services.cluster.runtimes.local.logfile import LogWriter
from services.cluster.runtimes.local.probe import Probe
from services.cluster.runtimes.local.processes import identify, memory
from services.cluster.runtimes.local.spec import STATE, Spec, State

_STARTING_INTERVAL = 0.05  # between health checks until the first good one
_REPORT_MEMORY_CHANGE = 1024 * 1024
_LOOK_INTERVAL = 2.0  # between looks at whether the folder is still there
_READS = 64  # pieces of output at a time


class Supervisor:
    """`abandoned` says whether the folder has been deleted: then the worker ends, as there is nobody to stop it."""

    def __init__(self, folder: Path, spec: Spec, abandoned: Callable[[], bool]) -> None:
        self._folder = folder
        self._abandoned = abandoned
        self._spec = spec
        self._policy = spec.supervision
        secret = Path(spec.api_key_file).read_text() if spec.api_key_file else ""
        self._log = LogWriter(folder, self._policy.log_max_bytes, secret)
        self._holder, port = hold_port()
        self._state = State(digest=spec.digest, port=port)
        self._child: Child | None = None
        self._probe: Probe | None = None
        self._selector = selectors.DefaultSelector()
        self._failures = 0  # of the server, in a row, without a healthy minute between them
        self._missed = 0  # health checks in a row
        self._why: tuple[str, str] | None = None  # we ended the server ourselves, for this reason
        self._kill_at: float | None = None
        self._start_at: float | None = 0.0  # when to start the server next
        self._check_at = self._memory_at = self._look_at = 0.0
        self._oom_kills = 0  # of the whole system, at the server's start
        self._stopping = False

    def announce(self) -> None:
        """Write the first state: from here on the manager can find this supervisor."""
        self._save()

    def run(self) -> None:
        """Returns when the worker was stopped by SIGTERM."""
        reading, writing = os.pipe()
        for descriptor in (reading, writing):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._ask_to_stop())
        self._selector.register(reading, selectors.EVENT_READ, "wake")
        while self._tick():
            for key, _ in self._selector.select(self._until_next()):
                if key.data == "wake":
                    os.read(reading, 512)
                elif key.data == "output":
                    self._read_output()
                elif self._probe is not None:
                    self._step_probe(self._probe)
        self._change("exited", reason="stopped", message="Stopped as asked.")
        self._log.note("stopped")

    def _tick(self) -> bool:
        """Do what is due; False when there is nothing left to look after."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_INTERVAL
            self._stopping = self._stopping or self._abandoned()
        if self._child is not None and (code := self._child.reap()) is not None:
            self._ended(self._child, code)
        if self._child is None:
            if not self._stopping and self._start_at is not None and now >= self._start_at:
                self._start()
            return not self._stopping
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._child.signal(signal.SIGKILL)
        if not self._stopping:
            if self._why is None:
                self._watch(self._child, now)
        elif self._state.state != "stopping":
            self._stop(self._child)
        return True

    def _watch(self, child: Child, now: float) -> None:
        if now >= self._memory_at:
            self._memory_at = now + self._policy.memory_interval
            self._check_memory(child)
        if self._probe is not None:
            self._step_probe(self._probe)
        elif now >= self._check_at:
            self._probe = Probe(self._state.port or 0, self._spec.health_path, self._spec.health_timeout)
            if self._probe.result is None:
                self._selector.register(self._probe.socket, selectors.EVENT_WRITE, "probe")
            self._step_probe(self._probe)
        state = self._state
        if state.ready_at is None and state.started_at is not None:
            if time.time() - state.started_at > self._spec.start_timeout:
                self._end(child, "start_timeout", f"It was not healthy {self._spec.start_timeout:g} s after its start.")
        elif (
            self._failures
            and state.state == "ready"
            and time.time() - (state.ready_at or 0) > self._policy.healthy_after
        ):
            self._failures = 0

    # --- the server's life

    def _start(self) -> None:
        self._start_at = None
        self._why = None
        self._missed = 0
        self._check_at = 0.0
        self._memory_at = time.monotonic() + self._policy.memory_interval
        self._oom_kills = outcome.oom_kills()
        self._log.last.clear()
        argv = [self._fill(part) for part in self._spec.argv]
        environment = {name: self._fill(value) for name, value in self._spec.environment.items()}
        state = self._state
        try:
            self._child = Child(argv, environment, self._folder)
        except OSError as fault:
            self._failed("cannot_start", f"The system refused another process: {fault.strerror}.", None)
            return
        self._selector.register(self._child.output, selectors.EVENT_READ, "output")
        server = identify(self._child.pid)
        state.server = list(server) if server else None
        state.started_at = time.time()
        state.ready_at = None
        self._log.note(f"started the server, pid {self._child.pid}, port {state.port}")
        self._change("crash_loop" if state.state == "crash_loop" else "starting")

    def _fill(self, text: str) -> str:
        text = text.replace("{port}", str(self._state.port)).replace("{directory}", str(self._folder))
        return text.replace("{api_key_file}", self._spec.api_key_file or os.devnull)

    def _end(self, child: Child, reason: str, message: str) -> None:
        """Restart the server for a reason of ours."""
        self._why = (reason, message)
        self._log.note(message)
        gentle = reason == "unhealthy"
        child.signal(signal.SIGTERM if gentle else signal.SIGKILL)
        self._kill_at = time.monotonic() + min(self._spec.stop_grace, 2.0) if gentle else None

    def _ended(self, child: Child, code: int) -> None:
        self._read_output()
        self._forget(child.output)
        child.close()
        self._drop_probe()
        self._log.flush()
        self._child = None
        self._kill_at = None
        self._state.server = None
        self._state.memory_bytes = None
        if not self._stopping:
            killed_for_memory = outcome.oom_kills() > self._oom_kills
            why = self._why or outcome.explain(code, self._log.last, killed_for_memory=killed_for_memory)
            self._failed(*why, code)

    def _failed(self, reason: str, message: str, code: int | None) -> None:
        state = self._state
        state.reason, state.message, state.exit_code = reason, message, code
        state.last_log = list(self._log.last)
        state.restarts += 1
        self._failures += 1
        looping = self._failures >= self._policy.crash_loop_after
        delay = self._policy.crash_loop_delay if looping else self._backoff()
        self._start_at = time.monotonic() + delay
        self._log.note(f"{message} Next start in {delay:g} s.")
        self._change("crash_loop" if looping else "restarting")

    def _backoff(self) -> float:
        return float(min(self._policy.backoff * 2 ** min(self._failures - 1, 16), self._policy.backoff_max))

    def _ask_to_stop(self) -> None:
        self._stopping = True

    def _stop(self, child: Child) -> None:
        self._drop_probe()
        self._kill_at = time.monotonic() + self._spec.stop_grace
        self._change("stopping")
        child.signal(signal.SIGTERM)

    # --- watching it

    def _read_output(self) -> None:
        for _ in range(_READS):  # a server that never stops talking must not keep us from watching it
            data = self._child.read() if self._child else None
            if data:
                self._log.feed(data)
                continue
            if data == b"" and self._child:  # it closed its output, and perhaps lives on
                self._forget(self._child.output)
            return

    def _check_memory(self, child: Child) -> None:
        used = memory(child.pid)
        if used is None:
            return
        before = self._state.memory_bytes or 0
        self._state.memory_bytes = used
        if used > self._spec.memory_bytes:
            limit = self._spec.memory_bytes
            self._end(child, "out_of_memory", f"It used {_mib(used)} of memory; its limit is {_mib(limit)}.")
        elif abs(used - before) >= _REPORT_MEMORY_CHANGE:
            self._save()

    def _step_probe(self, probe: Probe) -> None:
        descriptor = probe.socket.fileno()
        probe.step()
        if probe.result is None:
            self._selector.modify(descriptor, selectors.EVENT_WRITE if probe.writing else selectors.EVENT_READ, "probe")
            return
        self._forget(descriptor)
        self._probe = None
        self._checked(probe.result)

    def _drop_probe(self) -> None:
        if self._probe is not None:
            self._forget(self._probe.socket.fileno())
            self._probe.close()
            self._probe = None

    def _forget(self, descriptor: int) -> None:
        if descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)

    def _checked(self, healthy: bool) -> None:
        starting = self._state.ready_at is None
        waiting = _STARTING_INTERVAL if starting and not healthy else self._spec.health_interval
        self._check_at = time.monotonic() + waiting
        if healthy:
            self._missed = 0
            if self._state.state != "ready":
                if starting:
                    self._state.ready_at = time.time()
                    self._state.memory_bytes = memory(self._child.pid) if self._child else None
                self._log.note("ready")
                self._change("ready")
        elif not starting:
            self._missed += 1
            self._missed_a_check()

    def _missed_a_check(self) -> None:
        message = f"{self._spec.health_path} did not answer {self._missed} times in a row."
        if self._missed == self._spec.health_failures:
            self._log.note(message)
            self._change("unhealthy")
        elif self._missed >= 2 * self._spec.health_failures and self._child is not None:
            self._end(self._child, "unhealthy", message)

    # --- telling of it

    def _until_next(self) -> float:
        """Seconds until something is due."""
        due = [self._start_at, self._kill_at, self._look_at]
        if self._child is not None and self._why is None and not self._stopping:
            due += [self._memory_at, self._probe.deadline if self._probe else self._check_at]
        return max(0.0, min(moment for moment in due if moment is not None) - time.monotonic())

    def _change(self, name: str, *, reason: str | None = None, message: str | None = None) -> None:
        self._state.state = name
        if reason is not None:
            self._state.reason, self._state.message = reason, message
        self._save()

    def _save(self) -> None:
        try:
            write_json(self._folder / STATE, self._state.as_json())
        except OSError as fault:  # a full disk, or the folder is being removed: the next change tries again
            self._log.note(f"cannot write the state: {fault.strerror}")


def _mib(size: int) -> str:
    return f"{size / 1024**2:.0f} MiB"
