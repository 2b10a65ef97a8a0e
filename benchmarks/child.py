"""One phase of one queue, in that queue's environment: figures, or why there are none, as a line of JSON on stdout.

python -m benchmarks.child QUEUE PHASE '{"option": value}'   (BENCH_FOLDER: where its store belongs)
"""

import asyncio
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

from benchmarks.peers import NotOffered
from benchmarks.phases import LIVES, PHASES


async def main(queue: str, phase: str, options: str) -> None:
    folder = Path(os.environ["BENCH_FOLDER"]) / queue
    if phase in PHASES:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    peer = importlib.import_module(f"benchmarks.peers.{queue}").Adapter(folder)
    if phase in LIVES:
        await LIVES[phase](peer, **json.loads(options))
        return
    try:
        said = {"figures": await PHASES[phase](peer, **json.loads(options))}
    except NotOffered as why:
        said = {"lacks": str(why)}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    sys.stdout.flush()
    os._exit(0)  # some queues leave threads behind
