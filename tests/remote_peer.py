"""A small MCP server, and several bad ones, to be started by the tests: raw lines, nothing but the standard library.

    remote_peer.py LOG [mode]

What happens to it is appended to LOG, a line each. Modes: serve, silent, garbage, exit, flood, banner, deaf (it heeds
neither the end of its stdin nor TERM, and has a child like that).
"""

import json
import os
import signal
import sys
import threading
import time

LOG, MODE = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "serve"
SAFE = ("echo", "structured", "wait_safely", "crash_once")
TOOLS = (*SAFE, "change", "fail", "wait", "crash", "huge", "blocks", "complain", "surrogate", "ask", "grow", "shrink")
listed = [*TOOLS]
held = {}
writing = threading.Lock()


def note(line):
    with open(LOG, "a") as file:
        file.write(line + "\n")


def send(**message):
    with writing:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def text(said, **more):
    return {"content": [{"type": "text", "text": said}], **more}


def tool(name):
    hints = {"readOnlyHint": True} if name == "echo" else {"idempotentHint": True} if name in SAFE else None
    return {"name": name, "inputSchema": {"type": "object"}, **({"annotations": hints} if hints else {})}


def wait(request, arguments, token):
    """Tell progress, then wait until it is cancelled or somebody makes the file."""
    cancelled = held[request] = threading.Event()
    if token is not None:
        send(
            method="notifications/progress",
            params={"progressToken": token, "progress": 1, "total": 2, "message": "waiting"},
        )
    note(f"waiting {arguments.get('tag', '')}".strip())
    while not cancelled.is_set():
        if "until" in arguments and os.path.exists(arguments["until"]):
            return text(f"waited {arguments.get('tag', '')}".strip())
        cancelled.wait(0.01)
    note("cancelled")
    return None


def call(request, params):
    name, arguments = params["name"], params.get("arguments") or {}
    token = params.get("_meta", {}).get("progressToken")
    match name:
        case "echo":
            return text(arguments.get("text", ""), _meta={"pid": os.getpid()})
        case "structured":
            return text("told twice", structuredContent={"pid": os.getpid(), "env": dict(os.environ)})
        case "change":
            note("changed")
            return text("changed")
        case "fail":
            return text(arguments.get("text", "no such thing"), isError=True)
        case "wait" | "wait_safely":
            return wait(request, arguments, token)
        case "crash" | "crash_once":
            note("crashing")
            time.sleep(arguments.get("after", 0))
            if name == "crash" or not os.path.exists(arguments["flag"]):
                open(arguments.get("flag", os.devnull), "w").close()
                sys.stderr.write(f"fatal error: the disk is on fire, {os.environ.get('PEER_SECRET', '')}\n")
                sys.stderr.flush()
                os._exit(7)
            return text("survived")
        case "huge":
            return text("x" * arguments["bytes"])
        case "blocks":
            image = {"type": "image", "data": "A" * 4000, "mimeType": "image/png"}
            return {"content": [{"type": "text", "text": "see"}, image]}
        case "grow":
            listed.append("grown")
            return text("there is another one")
        case "shrink":
            listed.remove("change")
            send(method="notifications/tools/list_changed")
            return text("there is one less")
        case "grown":
            return text("grown")
        case "complain":
            return {"content": "this is no list"}
        case "surrogate":
            return text("\udcff")
        case "ask":
            send(
                id="q1",
                method="elicitation/create",
                params={"message": "?", "requestedSchema": {"type": "object", "properties": {}}},
            )
            return text("asked")


def answer(request, method, params):
    match method:
        case "initialize":
            note(f"initialized {os.getpid()}")
            capabilities = {"tools": {}}
            info = {"name": "peer", "version": "1"}
            send(id=request, result={"protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": info})
        case "tools/list":
            send(id=request, result={"tools": [tool(name) for name in listed]})
        case "tools/call":
            if params["name"] not in listed:
                send(id=request, error={"code": -32602, "message": f"Unknown tool: {params['name']}"})
            elif (result := call(request, params)) is not None:
                send(id=request, result=result)
        case _:
            send(id=request, error={"code": -32601, "message": "Method not found"})


def serve():
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("method") == "notifications/cancelled":
            held.pop(message["params"]["requestId"], threading.Event()).set()
        elif "method" in message and "id" in message:
            arguments = (message["id"], message["method"], message.get("params") or {})
            threading.Thread(target=answer, args=arguments, daemon=True).start()
    note("end of input")


note(f"started {os.getpid()}")
if MODE == "exit":
    sys.exit("Traceback\nImportError: no module named nothing")
if MODE == "silent":
    for _ in sys.stdin:
        pass
    sys.exit()
if MODE == "garbage":
    for _ in sys.stdin:
        sys.stdout.write("this is no protocol\n")
        sys.stdout.flush()
    sys.exit()
if MODE == "flood":
    while True:
        sys.stdout.write("y\n" * 10_000)
if MODE == "banner":
    sys.stdout.write("Welcome to the peer!\n\n{}\n")
if MODE == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        note(f"started {os.getpid()}")
        time.sleep(600)
        os._exit(0)
serve()
if MODE == "deaf":
    time.sleep(600)
