"""The shim as a server meets it: a real process, two pipes, and the files it leaves."""

import contextlib
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

SOURCE = Path(__file__).parents[1] / "src" / "taskorch" / "work" / "shim.py"
SECONDS = 5.0  # for what should take milliseconds
LISTENER = "trap 'echo heard' TERM; echo up; while :; do sleep 0.01; done"
DEAF_TREE = """
trap '' TERM
sleep 60 &
setsid sleep 60 &
(setsid sh -c 'sleep 60 &')
wait
"""


class Shim:
    """A started shim and the server's side of its pipes."""

    def __init__(self, folder: Path, source: Path = SOURCE, **options: Any) -> None:
        folder.mkdir(0o700, parents=True)
        self.folder = folder
        self.marker = f"TASKORCH_TEST={uuid.uuid4().hex}"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", source, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            **options,
        )
        self.hello = self._read_hello()

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, *argv: str | bytes, **records: Any) -> None:
        """Send the order and the go."""
        self.order(*argv, **records)
        self.send(b"G\0")

    def order(self, *argv: str | bytes, env: tuple[str, ...] = (), **records: Any) -> None:
        """Send all records but the go."""
        records = {"x": shutil.which(argv[0]), "c": self.folder.parent, "g": 60} | records
        sent = [b"a" + os.fsencode(item) for item in argv]
        sent += [b"e" + os.fsencode(item) for item in (self.marker, *env)]
        sent += [letter.encode() + os.fsencode(str(value)) for letter, value in records.items()]
        self.send(b"".join(record + b"\0" for record in sent))

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)

    def hang_up(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def unread(self) -> int:
        """How many bytes of the command pipe the shim has not read yet."""
        assert self.process.stdin
        answer = fcntl.ioctl(self.process.stdin, termios.FIONREAD, b"\0" * 4)
        return int.from_bytes(answer, sys.byteorder)

    def ended(self, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait for the end of the shim; return what it recorded."""
        assert self.process.wait(seconds) == 0
        return json.loads(self.path("exit.json").read_bytes())

    def path(self, name: str) -> Path:
        return self.folder / name

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def disk_bytes(self) -> int:
        total = 0
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat().st_blocks * 512
        return total

    def output(self) -> bytes:
        return self.path("output").read_bytes()

    def child(self) -> int:
        """The main child's pid, once the shim has noted it."""
        lock = self.path("shim.lock")
        wait_for(lambda: lock.read_text().count("\n") == 3)
        return int(lock.read_text().split("\n")[2].split()[0])

    def score(self) -> str:
        return Path(f"/proc/{self.pid}/oom_score_adj").read_text()

    def state(self, pid: int) -> str:
        """The letter that the kernel gives to a process; empty when there is none."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return ""

    def alive(self) -> dict[int, str]:
        """Pid and name of every living process of this command, wherever it hides."""
        found: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.marker.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
        return found

    def sleepers(self) -> int:
        """How many `sleep` processes this command has."""
        return list(self.alive().values()).count("sleep")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()

    def _read_hello(self) -> bytes:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        return self.process.stdout.read(2) if ready else b""


def wait_for(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def shims() -> Iterator[list[Shim]]:
    started: list[Shim] = []
    yield started
    for shim in started:
        shim.close()


@pytest.fixture
def start(tmp_path: Path, shims: list[Shim]) -> Callable[..., Shim]:
    """Start a shim, if asked with pieces of its source replaced, and wait until it holds its lock."""

    def start(replace: dict[str, str] | None = None, **options: Any) -> Shim:
        source = SOURCE
        if replace:
            text = SOURCE.read_text()
            for old, new in replace.items():
                assert old in text
                text = text.replace(old, new)
            source = tmp_path / f"shim{len(shims)}.py"
            source.write_text(text)
        shims.append(Shim(tmp_path / f"attempt{len(shims)}", source, **options))
        assert shims[-1].hello == b"L\n"
        return shims[-1]

    return start


@pytest.fixture
def shim(start: Callable[..., Shim]) -> Shim:
    return start()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[int]:
    """A FIFO named `gate` in the command's folder; what the test writes here, the command may wait to read."""
    os.mkfifo(tmp_path / "gate")
    fd = os.open(tmp_path / "gate", os.O_RDWR)  # both ends, so that opening it never blocks
    yield fd
    os.close(fd)


def field(text: bytes, name: str) -> str:
    """The value of one line of /proc/<pid>/status."""
    return next(line.split(":")[1].strip() for line in text.decode().splitlines() if line.startswith(name))


# Starting


def test_nothing_starts_before_the_go(shim: Shim) -> None:
    shim.order("sh", "-c", "echo begun")
    wait_for(lambda: shim.unread() == 0)
    assert Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text() == ""
    assert shim.path("shim.lock").read_text().count("\n") == 1
    shim.send(b"G\0")
    assert shim.ended()["code"] == 0
    assert shim.output() == b"begun\n"


def test_a_server_that_dies_before_the_go_leaves_nothing_behind(shim: Shim) -> None:
    assert shim.files() == {"shim.lock", "output", "exit.json.tmp"}
    shim.order("sh", "-c", "touch begun")
    shim.hang_up()
    assert shim.process.wait(SECONDS) == 0
    assert shim.files() == set()
    assert not (shim.folder.parent / "begun").exists()


def test_sigterm_before_the_go_means_that_nothing_ran(shim: Shim) -> None:
    shim.order("sh", "-c", "touch begun")
    shim.process.terminate()
    assert shim.process.wait(SECONDS) == -signal.SIGTERM
    assert shim.files() == {"shim.lock", "output", "exit.json.tmp"}
    assert not (shim.folder.parent / "begun").exists()


def test_an_order_that_was_given_is_carried_out_although_the_server_is_gone(shim: Shim) -> None:
    shim.run("sh", "-c", "echo begun")
    shim.hang_up()
    assert shim.ended()["why"] == "exit"
    assert shim.output() == b"begun\n"


def test_a_folder_serves_one_shim_only(shim: Shim) -> None:
    second = subprocess.run([sys.executable, "-I", "-S", SOURCE, shim.folder], capture_output=True, timeout=SECONDS)
    assert second.returncode == 1
    assert second.stdout == b""
    assert b"FileExistsError" in second.stderr


@pytest.mark.parametrize(("program", "errno"), [("/nonexistent", 2), (__file__, 13), ("/", 13)])
def test_a_command_that_cannot_start_says_why(shim: Shim, program: str, errno: int) -> None:
    shim.run("program", x=program)
    record = shim.ended()
    assert record["ended"] - record["started"] < 1000
    del record["started"], record["ended"]
    assert record == {
        "v": 1,
        "code": None,
        "signal": None,
        "why": "spawn_error",
        "errno": errno,
        "tree_gone": True,
        "killed": 0,
        "bytes": 0,
    }


def test_a_missing_working_directory_is_a_spawn_error(shim: Shim) -> None:
    shim.run("true", c="/nonexistent")
    assert (shim.ended()["why"], shim.ended()["errno"]) == ("spawn_error", 2)


def test_an_order_without_arguments_is_a_spawn_error(shim: Shim) -> None:
    shim.send(b"x/bin/true\0G\0")
    assert (shim.ended()["why"], shim.ended()["errno"]) == ("spawn_error", 22)


def test_that_something_begins_is_on_record_before_it_does(start: Callable[..., Shim]) -> None:
    shim = start({"self._child = os.posix_spawn(": "os.kill(os.getpid(), 9); self._child = os.posix_spawn("})
    shim.run("sh", "-c", "touch begun")
    assert shim.process.wait(SECONDS) == -signal.SIGKILL
    assert shim.path("shim.lock").read_text().splitlines()[1:] == ["begins"]
    assert not (shim.folder.parent / "begun").exists()


def test_the_lock_file_names_the_shim_and_its_child(shim: Shim) -> None:
    shim.run("sleep", "60")
    child = shim.child()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19] for pid in (shim.pid, child)]
    assert shim.path("shim.lock").read_text() == f"{shim.pid} {started[0]} {boot_id}\nbegins\n{child} {started[1]}\n"
    wait_for(shim.sleepers)
    assert os.getsid(child) == child


# What the command is given


def test_arguments_arrive_literally(shim: Shim) -> None:
    argv = [
        "a name; of its own",
        "--",
        "/proc/self/cmdline",
        "$HOME",
        "`id`",
        "a  b",
        "",
        "*",
        "|",
        "\n",
        '"',
        "é",
        "\\",
    ]
    shim.run(*argv, x=shutil.which("cat"))
    shim.ended()
    assert shim.output().startswith("".join(f"{item}\0" for item in argv).encode())


def test_the_environment_is_exactly_what_was_sent(shim: Shim) -> None:
    shim.run(shutil.which("env") or "", env=("A=1=2", "EMPTY=", "TEXT=two\nlines"))
    shim.ended()
    assert shim.output().decode() == f"{shim.marker}\nA=1=2\nEMPTY=\nTEXT=two\nlines\n"


def test_the_working_directory_is_the_one_that_was_sent(shim: Shim, tmp_path: Path) -> None:
    place = tmp_path / "a place"
    place.mkdir()
    shim.run("readlink", "/proc/self/cwd", c=place)
    shim.ended()
    assert shim.output().decode() == f"{place}\n"


@pytest.mark.parametrize("text", ["", "two\nlines", "long" * 500_000])
def test_text_for_stdin_is_read_to_its_end(shim: Shim, text: str) -> None:
    shim.run("cat", i=text, h=10_000_000)
    assert shim.ended()["bytes"] == len(text)
    assert shim.output().decode() == text


def test_stdin_is_empty_by_default(shim: Shim) -> None:
    shim.run("sh", "-c", "readlink /proc/self/fd/0; cat")
    shim.ended()
    assert shim.output() == b"/dev/null\n"


def test_the_command_inherits_three_descriptors_and_no_more(start: Callable[..., Shim]) -> None:
    with open(os.devnull) as low, open(os.devnull) as high:
        far = fcntl.fcntl(high, fcntl.F_DUPFD, 200)
        shim = start(pass_fds=(low.fileno(), far))
        os.close(far)
    shim.run("sleep", "60")
    child = shim.child()
    wait_for(shim.sleepers)
    wait_for(lambda: set(os.listdir(f"/proc/{child}/fd")) == {"0", "1", "2"})  # ld.so has others for a moment


def test_the_command_starts_with_ordinary_signals_and_no_core_files(start: Callable[..., Shim]) -> None:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    try:
        shim = start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    own = Path(f"/proc/{shim.pid}/status").read_bytes()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGQUIT):
        assert int(field(own, "SigIgn"), 16) & 1 << number - 1
    shim.run("cat", "/proc/self/status", "/proc/self/limits")
    shim.ended()
    ignored = int(field(shim.output(), "SigIgn"), 16) & ~(3 << 31)  # 32 and 33 are the C library's own business
    assert (ignored, int(field(shim.output(), "SigBlk"), 16)) == (0, 0)
    assert any(line.split()[:6] == b"Max core file size 0 0".split() for line in shim.output().splitlines())


def test_the_command_is_a_better_victim_for_the_oom_killer_than_the_shim(shim: Shim, gate: int) -> None:
    own = int(shim.score())
    shim.run("sh", "-c", "read _ < gate; cat /proc/self/oom_score_adj")
    shim.child()
    assert int(shim.score()) == own
    os.write(gate, b"\n")
    shim.ended()
    assert int(shim.output()) == min(1000, own + 200)


# How it ends


def test_the_exit_code_and_the_order_of_the_output_are_kept(shim: Shim) -> None:
    before = time.time_ns() // 1_000_000
    shim.run("sh", "-c", "echo 1; echo 2 >&2; echo 3; echo 4 >&2; exit 7")
    record = shim.ended()
    assert before <= record.pop("started") <= record.pop("ended") <= time.time_ns() // 1_000_000
    assert record == {
        "v": 1,
        "code": 7,
        "signal": None,
        "why": "exit",
        "errno": None,
        "tree_gone": True,
        "killed": 0,
        "bytes": 8,
    }
    assert shim.output() == b"1\n2\n3\n4\n"
    assert shim.files() == {"shim.lock", "output", "exit.json"}


def test_a_death_by_signal_is_told_apart_from_an_exit_code(shim: Shim) -> None:
    shim.run("sh", "-c", "kill -USR1 $$")
    record = shim.ended()
    assert (record["code"], record["signal"], record["why"]) == (None, signal.SIGUSR1, "exit")


def test_terminate_ends_the_command(shim: Shim) -> None:
    shim.run("sleep", "60")
    shim.send(b"T")
    record = shim.ended()
    assert (record["code"], record["signal"], record["why"]) == (None, signal.SIGTERM, "cancel")
    assert record["killed"] == 0


def test_terminate_reaches_the_whole_process_group(shim: Shim) -> None:
    shim.run("sh", "-c", "trap : TERM; sleep 60 & echo up; wait; wait; exit 9")
    wait_for(lambda: shim.output() and shim.sleepers())
    shim.send(b"T")
    record = shim.ended()
    assert (record["code"], record["why"], record["killed"]) == (9, "cancel", 0)


def test_terminate_reaches_a_stopped_command(shim: Shim) -> None:
    shim.run("sh", "-c", "kill -STOP $$")
    child = shim.child()
    wait_for(lambda: shim.state(child) == "T")
    shim.send(b"T")
    assert shim.ended()["signal"] == signal.SIGTERM


def test_a_command_that_obeys_terminate_with_exit_code_0_was_cancelled_all_the_same(shim: Shim) -> None:
    shim.run("sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")
    wait_for(shim.output)
    shim.send(b"T")
    record = shim.ended()
    assert (record["code"], record["signal"], record["why"]) == (0, None, "cancel")
    assert shim.output().endswith(b"bye\n")


def test_terminate_kills_a_deaf_tree_after_the_grace(shim: Shim) -> None:
    shim.run("sh", "-c", DEAF_TREE, g=0.2)
    wait_for(lambda: shim.sleepers() == 3)
    shim.send(b"T")
    record = shim.ended(0.2 + 1)
    assert shim.alive() == {}
    assert (record["signal"], record["why"]) == (signal.SIGKILL, "cancel")
    assert (record["tree_gone"], record["killed"]) == (True, 4)


def test_kill_ends_a_deaf_tree_at_once(shim: Shim) -> None:
    shim.run("sh", "-c", DEAF_TREE)
    wait_for(lambda: shim.sleepers() == 3)
    shim.send(b"K")
    record = shim.ended(1)
    assert shim.alive() == {}
    assert (record["signal"], record["why"]) == (signal.SIGKILL, "cancel")
    assert (record["tree_gone"], record["killed"]) == (True, 4)


def test_only_the_living_are_counted_as_killed(shim: Shim) -> None:
    shim.run("sh", "-c", "true & exec sleep 60")
    child = shim.child()
    children = Path(f"/proc/{child}/task/{child}/children")
    wait_for(lambda: shim.sleepers() and [shim.state(int(pid)) for pid in children.read_text().split()] == ["Z"])
    shim.send(b"K")
    assert shim.ended()["killed"] == 1


def test_a_kernel_that_does_not_list_children_hides_nobody(start: Callable[..., Shim]) -> None:
    shim = start({"}/children": "}/nothing"})
    shim.run("sh", "-c", DEAF_TREE)
    wait_for(lambda: shim.sleepers() == 3)
    shim.send(b"K")
    assert shim.ended(1)["killed"] == 4
    assert shim.alive() == {}


def test_without_proc_and_reaper_the_process_group_is_killed(start: Callable[..., Shim]) -> None:
    shim = start({'"/proc': '"/nowhere', 'sys.platform == "linux"': "False", 'sys.platform != "linux"': "True"})
    shim.run("sh", "-c", "trap '' TERM; sleep 60 & sleep 60", i="text")
    wait_for(lambda: shim.sleepers() == 2)
    shim.send(b"K")
    record = shim.ended()  # once init has reaped the orphan, which takes some inits a second
    assert shim.alive() == {}
    assert (record["signal"], record["why"], record["tree_gone"]) == (signal.SIGKILL, "cancel", True)
    assert shim.path("shim.lock").read_text().split("\n")[0] == f"{shim.pid} 0 -"


def test_a_fork_bomb_is_ended_by_kill(shim: Shim) -> None:
    shim.run("sh", "-c", "bomb() { test $1 -gt 0 && { bomb $(($1-1)) & bomb $(($1-1)) & }; exec sleep 60; }; bomb 7")
    wait_for(lambda: len(shim.alive()) > 50)  # and it goes on
    shim.send(b"K")
    record = shim.ended()
    assert shim.alive() == {}
    assert record["tree_gone"]
    assert record["killed"] > 50


def test_sigterm_terminates_and_a_second_one_kills(shim: Shim) -> None:
    shim.run("sh", "-c", LISTENER)
    wait_for(shim.output)
    shim.hang_up()
    shim.process.send_signal(signal.SIGTERM)
    wait_for(lambda: b"heard" in shim.output())
    shim.process.send_signal(signal.SIGTERM)
    record = shim.ended(1)
    assert (record["signal"], record["why"]) == (signal.SIGKILL, "cancel")
    assert shim.alive() == {}


def test_the_time_limit_terminates(shim: Shim) -> None:
    shim.run("sleep", "60", t=0.05)
    record = shim.ended()
    assert (record["signal"], record["why"]) == (signal.SIGTERM, "timeout")


def test_the_time_limit_kills_what_does_not_listen(shim: Shim) -> None:
    shim.run("sh", "-c", DEAF_TREE, t=0.1, g=0.1, s="survive")
    shim.hang_up()
    record = shim.ended(1.5)
    assert (record["signal"], record["why"], record["tree_gone"]) == (signal.SIGKILL, "timeout", True)
    assert shim.alive() == {}


def test_a_command_survives_its_server(shim: Shim, gate: int) -> None:
    shim.run("sh", "-c", "echo one; read line < gate; echo $line; exit 3", s="survive")
    wait_for(shim.output)
    shim.hang_up()
    os.write(gate, b"two\n")
    record = shim.ended()
    assert (record["code"], record["why"], record["bytes"]) == (3, "exit", 8)
    assert shim.output() == b"one\ntwo\n"


def test_a_command_that_shall_stop_with_its_server_does(shim: Shim) -> None:
    shim.run("sh", "-c", DEAF_TREE, s="stop")
    wait_for(lambda: shim.sleepers() == 3)
    shim.hang_up()
    record = shim.ended(1)
    assert shim.alive() == {}
    assert (record["signal"], record["why"], record["killed"]) == (signal.SIGKILL, "server_gone", 4)


def test_what_the_command_leaves_behind_ends_with_it(shim: Shim) -> None:
    shim.run("sh", "-c", "setsid -f sleep 60; (sleep 60 &); sleep 60 & exit 3")
    record = shim.ended(1)
    assert shim.alive() == {}
    assert (record["code"], record["why"]) == (3, "exit")
    assert (record["tree_gone"], record["killed"]) == (True, 3)


def test_an_orphan_that_ends_early_is_not_left_a_zombie(shim: Shim, gate: int) -> None:
    shim.run("sh", "-c", "(setsid true &); echo up; read line < gate; exit 0")
    wait_for(shim.output)
    children = Path(f"/proc/{shim.pid}/task/{shim.pid}/children")
    child = shim.child()
    wait_for(lambda: list(shim.alive()) == [child] and children.read_text().split() == [str(child)])
    os.write(gate, b"\n")
    assert shim.ended()["killed"] == 0


def test_a_writer_outside_the_tree_does_not_hold_the_shim(shim: Shim) -> None:
    shim.run("sleep", "60")
    wait_for(shim.sleepers)
    with open(f"/proc/{shim.child()}/fd/1", "wb", buffering=0) as output:
        output.write(b"from outside")
        shim.send(b"K")
        assert shim.ended(1)["tree_gone"]
    assert shim.output() == b"from outside"


def test_processes_that_cannot_be_killed_are_reported(start: Callable[..., Shim]) -> None:
    """Another user's processes refuse the signal; here nobody is sent one."""
    shim = start(
        {"os.kill(pid, _signal.SIGKILL)": "raise PermissionError", "KILL_SECONDS = 5.0": "KILL_SECONDS = 0.05"}
    )
    shim.run("sleep", "60")
    wait_for(shim.sleepers)
    shim.send(b"K")
    record = shim.ended()
    assert shim.sleepers() == 1
    assert (record["code"], record["signal"], record["why"]) == (None, None, "cancel")
    assert (record["tree_gone"], record["killed"]) == (False, 0)


def test_the_first_cause_is_the_one_that_is_told(shim: Shim) -> None:
    shim.run("sh", "-c", LISTENER, s="stop")
    wait_for(shim.output)
    shim.send(b"T")
    wait_for(lambda: b"heard" in shim.output())
    shim.hang_up()
    record = shim.ended(1)
    assert (record["signal"], record["why"]) == (signal.SIGKILL, "cancel")


def test_a_shim_that_fails_ends_the_tree_and_records_nothing(start: Callable[..., Shim]) -> None:
    shim = start({"self._output.add(data)": "raise RuntimeError('as the test wants it')"}, stderr=subprocess.DEVNULL)
    shim.run("sh", "-c", DEAF_TREE.replace("wait", "until test -e ready; do sleep 0.01; done; echo; wait"))
    wait_for(lambda: shim.sleepers() >= 3)
    (shim.folder.parent / "ready").touch()
    assert shim.process.wait(SECONDS) == 1
    assert shim.alive() == {}
    assert "exit.json" not in shim.files()


# The lock and the files


def test_the_lock_is_held_until_the_exit_record_is_there(shim: Shim) -> None:
    shim.run("sleep", "60")
    with shim.path("shim.lock").open("r+") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not shim.path("exit.json").exists()
        shim.send(b"T")
        fcntl.lockf(lock, fcntl.LOCK_EX)
        assert json.loads(shim.path("exit.json").read_bytes())["why"] == "cancel"


def test_files_are_for_the_owner_only(start: Callable[..., Shim]) -> None:
    shim = start(umask=0)
    shim.run("sh", "-c", "head -c 5000 /dev/zero; umask", h=1000, l=1500)
    shim.ended()
    assert shim.files() == {"shim.lock", "output", "output.2500", "output.4000", "exit.json"}
    assert {oct(path.stat().st_mode & 0o7777) for path in shim.folder.iterdir()} == {"0o600"}


def test_output_is_kept_as_a_head_and_two_segments_named_by_their_offset(shim: Shim) -> None:
    shim.run("seq", "-w", "0", "9999", h=1000, l=1500)
    record = shim.ended()
    whole = b"".join(b"%04d\n" % number for number in range(10000))
    assert record["bytes"] == len(whole) == 50_000
    assert shim.files() == {"shim.lock", "output", "output.47500", "output.49000", "exit.json"}
    assert shim.output() == whole[:1000]
    assert shim.path("output.47500").read_bytes() == whole[47500:49000]
    assert shim.path("output.49000").read_bytes() == whole[49000:]


def test_what_the_pipe_still_holds_at_the_end_is_kept(start: Callable[..., Shim], gate: int) -> None:
    shim = start({"CHUNK = 256 * 1024": "CHUNK = 64", "SIP = 16 * 1024": "SIP = 64"})
    shim.run("sh", "-c", "echo up; read line < gate; exec seq -w 0 99")
    wait_for(shim.output)
    child = shim.child()
    os.kill(shim.pid, signal.SIGSTOP)
    os.write(gate, b"\n")
    wait_for(lambda: shim.state(child) == "Z")
    os.kill(shim.pid, signal.SIGCONT)
    assert shim.ended()["bytes"] == 303
    assert shim.output() == b"up\n" + b"".join(b"%02d\n" % number for number in range(100))


def test_a_command_that_closes_its_output_costs_no_work(shim: Shim) -> None:
    shim.run("sh", "-c", "echo up; exec sleep 60 >&- 2>&-")
    child = shim.child()
    wait_for(lambda: set(os.listdir(f"/proc/{child}/fd")) == {"0"})
    wait_for(lambda: shim.output() and shim.state(shim.pid) == "S")
    before = Path(f"/proc/{shim.pid}/io").read_text()
    time.sleep(0.05)
    assert Path(f"/proc/{shim.pid}/io").read_text() == before
    shim.send(b"T")
    assert shim.ended()["signal"] == signal.SIGTERM


def test_output_that_just_fits_makes_no_segment(shim: Shim) -> None:
    shim.run("head", "-c", "1000", "/dev/zero", h=1000)
    assert shim.ended()["bytes"] == 1000
    assert shim.files() == {"shim.lock", "output", "exit.json"}


def test_a_flood_of_output_costs_neither_disk_nor_memory(shim: Shim, tmp_path: Path) -> None:
    block = b"".join(b"%07d\n" % number for number in range(1 << 17))
    (tmp_path / "block").write_bytes(block)
    before = int(field(Path(f"/proc/{shim.pid}/status").read_bytes(), "VmHWM").split()[0])
    shim.run("sh", "-c", "for i in $(seq 100); do cat block; done; touch written; exec sleep 60")
    most = 0

    def written() -> bool:
        nonlocal most
        most = max(most, shim.disk_bytes())
        return (tmp_path / "written").exists()

    wait_for(written)
    after = int(field(Path(f"/proc/{shim.pid}/status").read_bytes(), "VmHWM").split()[0])
    shim.send(b"K")
    record = shim.ended()
    assert record["bytes"] == 100 << 20
    assert most <= 2 << 20
    assert after - before < 4096
    assert shim.output() == block[: 256 << 10]
    segments = sorted(int(name.split(".")[1]) for name in shim.files() if name.startswith("output."))
    assert len(segments) == 2
    kept = b"".join(shim.path(f"output.{offset}").read_bytes() for offset in segments)
    assert segments[0] + len(kept) == 100 << 20
    assert kept == (block * 2)[-len(kept) :]
    assert len(kept) > 384 << 10


def test_a_full_disk_costs_none_of_what_was_kept_before(start: Callable[..., Shim], gate: int) -> None:
    """A segment that gets no byte takes nobody's place, however often that is tried."""
    shim = start({"RETRY_SECONDS = 1.0": "RETRY_SECONDS = 0.0"})
    script = "seq -w 0 999; for i in 1 2 3 4; do read line; printf 1234567890; done < gate; exit 3"
    shim.run("sh", "-c", script, h=1000, l=1500)
    wait_for(lambda: sum(path.stat().st_size for path in shim.folder.glob("output*")) == 4000)
    resource.prlimit(shim.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    reads = Path(f"/proc/{shim.pid}/io")
    for _ in range(3):
        before = reads.read_text()
        os.write(gate, b"\n")
        wait_for(lambda before=before: reads.read_text() != before)
    resource.prlimit(shim.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.write(gate, b"\n")
    record = shim.ended()
    assert (record["code"], record["bytes"]) == (3, 4040)
    whole = b"".join(b"%03d\n" % number for number in range(1000))
    assert shim.output() == whole[:1000]
    assert shim.path("output.2500").read_bytes() == whole[2500:]
    assert len(shim.files()) <= len({"shim.lock", "output", "output.2500", "output.4030", "exit.json"})


def test_an_end_that_a_failing_disk_does_not_confirm_is_on_record_all_the_same(start: Callable[..., Shim]) -> None:
    refused = "    os.fsync = lambda _: os.open('/nowhere', os.O_RDONLY)\n    os.ftruncate(record,"
    shim = start({"    os.ftruncate(record,": refused})
    shim.run("sh", "-c", "exit 3")
    assert shim.ended()["code"] == 3


def test_a_disk_that_takes_no_more_costs_bytes_but_not_the_command(start: Callable[..., Shim], gate: int) -> None:
    """A file size limit stands for the full disk."""
    shim = start({"RETRY_SECONDS = 1.0": "RETRY_SECONDS = 0.0"})
    resource.prlimit(shim.pid, resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    shim.run("sh", "-c", "seq -w 0 1999; read line < gate; seq -w 2000 2999; exit 3", h=5000, l=5000)
    wait_for(lambda: len(shim.output()) == 2000)
    resource.prlimit(shim.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.write(gate, b"\n")
    record = shim.ended()
    whole = b"".join(b"%04d\n" % number for number in range(3000))
    assert (record["code"], record["bytes"]) == (3, len(whole))
    assert shim.output() == whole[:2000]
    segments = sorted(int(name.split(".")[1]) for name in shim.files() if name.startswith("output."))
    for offset in segments:
        kept = shim.path(f"output.{offset}").read_bytes()
        assert kept == whole[offset : offset + len(kept)]
    assert shim.path(f"output.{segments[-1]}").read_bytes().endswith(b"2999\n")
