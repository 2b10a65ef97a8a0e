"""Power cuts while supervisors record how their commands ended: no record, or the whole one, at last for certain.

The real supervisor runs under strace, and its folder is rebuilt at each of its writes, renames and syncs.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from reliability.disk import Disk, everything, nothing, some, torn
from reliability.trace import HEX, STRACE, Event, Recording, decoded
from taskorch.work import supervised

RECORD = "exit.json"
DRAWS = 8  # of each random way in which the disk may come out of a cut
IN_FOLDER = re.compile(rf'\d+<{HEX}>, "{HEX}"(?:, \d+<{HEX}>, "{HEX}")?(.*)', re.DOTALL)
COUNTERS = ("supervisors", "cuts", "copies", "torn", "lost")

# The supervisor under test: the real byte code, one of its steps left out.
BUGS = {
    "record-in-place": """
create = names["_create"]
names["_create"] = lambda folder, name: create(folder, name.replace(".tmp", ""))
names["os"].rename = lambda *args, **kwargs: None
""",
    "record-unsynced": """
sync = names["os"].fsync
names["os"].fsync = lambda fd: sync(fd) if names["os"].path.isdir("/proc/self/fd/%d" % fd) else None
""",
    "record-unnamed": """
sync = names["os"].fsync
names["os"].fsync = lambda fd: None if names["os"].path.isdir("/proc/self/fd/%d" % fd) else sync(fd)
""",
}
SHIM = """import marshal, os
names = {"__name__": "shim"}
exec(marshal.loads(open(%r, "rb").read()[16:]), names)
%s
names["main"]()
os._exit(0)
"""


class ShimRecording(Recording):
    """A shim names its files by the descriptor of its folder, and writes some of them on and on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, lambda name: True)
        self._ends = Counter[str]()  # how far each file is written

    def _event(self, call: str, text: str) -> Iterator[Event]:
        found = IN_FOLDER.match(text)
        if re.search(r"\) += -1 ", text[-80:]):
            return
        if not found or decoded(found[1]).decode() != self._folder or call.startswith("write"):
            yield from self._of_path(call, text) if text.startswith(("AT_FDCWD", '"')) else self._of_file(call, text)
        elif call == "openat":
            yield from [("open", (decoded(found[2]).decode(),))] if "O_CREAT" in found[5] else []
        elif call.startswith("rename"):
            yield "rename", (decoded(found[2]).decode(), decoded(found[4]).decode())
        else:
            yield call.removesuffix("at"), (decoded(found[2]).decode(),)

    def _change(self, call: str, name: str, rest: str) -> Event:
        if call != "write":
            return super()._change(call, name, rest)
        at, data = self._ends[name], decoded(rest.split('"')[1])
        self._ends[name] += len(data)
        return "write", (name, at, data)


def run(folder: Path, bug: str | None, chance: random.Random) -> tuple[list[Event], bytes]:
    """One supervisor with its command: what it did to its folder, and its record."""
    state, shim = folder / "attempt", folder / "shim.py"
    state.mkdir(parents=True)
    shim.write_text(SHIM % (str(supervised.compiled_shim(folder.parent / "cache")), BUGS[bug] if bug else ""))
    script = f"head -c {chance.choice((0, 10, 5_000, 400_000))} /dev/zero; exit {chance.choice((0, 0, 3))}"
    order = supervised.Order("/bin/sh", ("sh", "-c", script), "/", (), {}, None, 60, 1, "survive").encode()
    command = [*STRACE, "-o", folder / "trace", sys.executable, "-I", "-S", str(shim), str(state)]
    subprocess.run(command, input=order, stdout=subprocess.PIPE, check=True, timeout=60)
    lines = (folder / "trace").read_text().splitlines(keepends=True)
    return list(ShimRecording(state).events(lines)), (state / RECORD).read_bytes()


def copies(drive: Disk, chance: random.Random) -> Iterator[bytes | None]:
    """The record as a cut may leave it; None: there is none."""
    for keep in (nothing, everything, *(way(chance) for way in (some, torn) for _ in range(DRAWS))):
        yield drive.after_cut(keep).get(RECORD)


def judge(events: list[Event], record: bytes, chance: random.Random) -> tuple[Counter[str], str]:
    """Cut after every event. `torn`: a record that is not the one; `lost`: none, though the supervisor had left."""
    counts, first, drive = Counter(supervisors=1), "", Disk()
    drive.sync_folder()
    for number, (what, arguments) in enumerate(events, 1):
        getattr(drive, what)(*arguments)
        counts["cuts"] += 1
        for found in copies(drive, chance):
            counts["copies"] += 1
            wrong = "lost" if found is None and number == len(events) else "torn" if found not in (None, record) else ""
            counts[wrong] += bool(wrong)
            if wrong and not first:
                first = f"{wrong} after {what} {arguments[:1]}, {number} of {len(events)}: {found!r:.80}"
    return counts, first


def prove(supervisors: int, seed: int, bug: str | None) -> int:
    """Record, cut, judge; the exit code: 0 if no record was wrong, or, with a bug, if one was."""
    chance, counts, first = random.Random(seed), Counter[str](), ""
    with tempfile.TemporaryDirectory(prefix="taskorch-records-") as folder:
        for number in range(supervisors):
            events, record = run(Path(folder) / str(number), bug, chance)
            json.loads(record)  # it is whole, as long as nobody cuts the power
            found, where = judge(events, record, chance)
            counts, first = counts + found, first or where
    right = bool(counts["torn"] + counts["lost"]) == bool(bug)
    figures = " ".join(f"{name}={counts[name]}" for name in COUNTERS)
    print(f"power: records bug={bug or '-'} seed={seed} {figures}: {'as' if right else 'NOT as'} expected")
    if first:
        print(f"power: the first bad record: {first}")
    return 0 if right else 1
