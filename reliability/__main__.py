"""python -m reliability <proof> [options]"""

import importlib
import sys

PROOFS = {
    "kills": "servers on one file, killed and stopped at named points and at random; an independent checker reads on",
    "mutants": "the same with seeded bugs, each of which must be caught",
    "power": "power cuts at every write and sync of a recorded run, of the store or of supervisors (--records)",
    "storm": "8 processes write to one file as fast as they can",
    "soak": "100,000 tasks with flat memory, descriptors and threads",
    "wake": "how soon a server acts on what another one stored",
    "trees": "command trees of every shape, ended in every way: no process may be left",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in PROOFS:
        listed = "\n".join(f"  {name:8} {text}" for name, text in PROOFS.items())
        print(f"{__doc__}\n\n{listed}\n\npython -m reliability <proof> --help says what each takes.")
        return 0 if sys.argv[1:] in ([], ["--help"], ["-h"]) else 2
    name, *arguments = sys.argv[1:]
    return importlib.import_module(f"reliability.{name}").main(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
