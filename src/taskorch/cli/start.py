"""The way in. As hosts start it, without arguments, it serves at once and never loads the command line's library.

Imports leave next to no garbage, and looking for it took a tenth of the start: so it is not looked for until they are
done, and nothing is imported before that is said.
"""

import gc
import os
import sys

COMPLETE = "_TASKORCH_COMPLETE"  # by which shells ask for what could stand here


def main() -> None:
    """The `taskorch` command."""
    gc.disable()
    if sys.argv[1:] or COMPLETE in os.environ:
        from taskorch.cli.main import main as command_line

        gc.enable()
        command_line()
    from taskorch.cli.serving import serve

    serve({})
