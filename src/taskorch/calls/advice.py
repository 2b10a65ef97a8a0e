"""What to say to wishes that cannot be met: other systems' arguments and tools, by the names that models try."""

import difflib
import re
from collections.abc import Collection, Set

from taskorch.domain.errors import InvalidInput, shown, snake_case

REPEATS = 'To repeat it write schedule={"cron": "0 7 * * 1-5"} or schedule={"every_seconds": "5m"}.'
FIXED = "A schedule's times are fixed: cancel_task it, create another. run_at or delay_seconds=0 moves its next time."
OF_SCHEDULES = 'It belongs to a schedule: schedule={"cron": "0 7 * * *", "time_zone": "UTC"}.'
LOCK = 'Of the tasks with one concurrency_key one works at a time, the others wait: write concurrency_key="deploy".'
LIMIT = f"{LOCK} How many may is the user's setting, TASKORCH_LIMITS."
ALWAYS = "Every task runs in the background; leave it out."
GIVEN = "The server makes the id. Give a name instead: it will do wherever an id is wanted."
ONE_EACH = "One call makes one task: call create_tasks for several."
NEWEST = "Tasks come newest first, always; leave it out."
PAGES = "Pages go by cursor: call again with cursor=next_cursor of the page before; limit is the size of a page."
ROWS = 'Rows are short, always; get_task(detail="full") tells all of one task.'
ONE_SEEN = "One task is seen with get_task, several at once with wait_for_tasks and timeout_seconds=0."
TIMES = "Of times there are created_after and created_before; rows say when a task ended."
STATUS = "A status is not set: call cancel_task or retry_task, or give paused=true or paused=false here."
SAME_WORK = "The same work runs again, at once or after delay_seconds. To change it, create a new task."
BYTES = "Output is counted in bytes, not lines: give tail_bytes (at most 2048), or offset or grep."
BOTH = "stdout and stderr are kept as one output; leave it out."
FOLLOW = "To follow what works call wait_for_tasks: it shows the last output."
ONE_ID = "This takes one task by task_id: call list_tasks to find them, then call it once for each."
TREE = "The whole process tree is ended, first asked, then forced; leave it out."
POLICY = 'Write retry={"on_exit": [1, 75], "first_delay_seconds": 5}, of which each part may be left out.'
NO_WORKERS = (
    "Claiming tasks is for outside workers: the user switches that on by TASKORCH_TOOLSETS=core,worker in the "
    'environment of taskorch. Kinds like "command" are run by the server itself.'
)
NO_BOARD = (
    "The user switches the board on by TASKORCH_TOOLSETS=core,board in the environment of taskorch. Call get_stats for "
    "numbers, list_tasks for tasks."
)
FOR_AGENTS = (
    "A task runs a program or a Python handler, no model. get_stats lists the kinds; if one is outside, write "
    'kind="outside", payload={"prompt": "...", "work_directory": "/absolute"}: an agent that calls claim_task does it.'
)
WHY = "Say in message why it could not be done."
ANY_KIND = "One call claims one task, the best that fits; filters are kind, label and work_directory."
ENDS = "Call complete_task when it is done, fail_task when it cannot be done."
FENCE = "task_id and attempt say whose it is; leave it out."
BUDGET = "When it is tried again is reckoned by the server; retryable=false fails the task for good."
FULL = 'Write detail="full" for payload, attempts and events; get_task_output has the output.'

# For each tool: words for what it does not have, and what to do about it.
UNKNOWN: dict[str, dict[str, str]] = {
    "create_task": {
        "cron cron_expression crontab rrule repeat repeat_every recurring recurrence": REPEATS,
        "interval interval_seconds every every_seconds": REPEATS,
        "time_zone timezone tz catch_up overlap": OF_SCHEDULES,
        "ref": "Refs are for create_tasks; here depends_on takes ids and names.",
        "background run_in_background detach detached async async_mode is_background blocking": ALWAYS,
        "mutex lock lock_key semaphore exclusive serial queue queue_name group group_id": LOCK,
        "concurrency max_concurrent max_concurrency concurrency_limit max_parallel parallelism limit": LIMIT,
        "id task_id uuid": GIVEN,
        "tasks task_ids commands items": ONE_EACH,
        "paused": "Create it with delay_seconds or run_at, then call update_task(paused=true).",
        "status": "A new task waits, always; leave it out.",
        "callback callback_url webhook webhook_url notify": "Nobody is called back: call wait_for_tasks.",
        "prompt instructions agent": FOR_AGENTS,
        "code source": 'Name the program that runs it: payload={"argv": ["python3", "-c", "print(1)"]}.',
        "on_exit fail_on_exit retry_on_exit retry_on first_delay_seconds max_delay_seconds factor": POLICY,
        "retry_policy retry_options retry_delay retry_delay_seconds retry_backoff backoff backoff_factor": POLICY,
        "seconds duration": 'The kind "sleep" takes it in its payload: payload={"seconds": 3}.',
    },
    "list_tasks": {
        "sort sort_by order order_by order_dir direction descending reverse": NEWEST,
        "page page_number offset skip start": PAGES,
        "detail details verbose fields include full": ROWS,
        "id ids task_id task_ids task tasks": ONE_SEEN,
        "phase": 'What is scheduled, paused or blocked has the status "waiting"; its row says which.',
        "finished_after finished_before started_after updated_after ended_after": TIMES,
    },
    "get_task": {"full verbose include include_history include_output include_payload history details": FULL},
    "update_task": {
        "status state phase": STATUS,
        "schedule cron every_seconds interval time_zone": FIXED,
        "kind type": "The kind of a task is fixed; create a new task.",
        "retry retry_policy": "The policy of a task is fixed; max_attempts can be changed.",
        "concurrency_key": "The concurrency_key of a task is fixed; create a new task.",
        "add_labels remove_labels add_tags": "Give labels in full: they take the place of the ones before.",
        "argv command cmd": 'Write payload={"argv": ["git", "fetch"]}.',
        "pause": "Write paused=true.",
        "resume unpause": "Write paused=false.",
    },
    "cancel_task": {
        "status all kind label filter text": ONE_ID,
        "force signal grace_seconds kill confirm timeout": TREE,
    },
    "retry_task": {
        "status all kind label filter text": ONE_ID,
        "payload max_attempts priority timeout_seconds name labels run_at argv command force reset": SAME_WORK,
    },
    "delete_task": {"status all kind label filter text older_than": ONE_ID},
    "wait_for_tasks": {
        "poll_interval poll_interval_seconds interval interval_seconds": "Nothing is polled; leave it out.",
        "any": 'Write until="any".',
        "all": 'Write until="all".',
        "status": "It waits for any end: completed, failed or cancelled; leave it out.",
    },
    "claim_task": {
        "task_id id name priority limit count max_tasks batch_size status": ANY_KIND,
        "wait wait_seconds timeout timeout_seconds block": "It answers at once, and says when the next one is due.",
    },
    "heartbeat_task": {"status state result error": ENDS, "worker worker_id owner token lease_id": FENCE},
    "complete_task": {
        "status state success error": ENDS,
        "worker worker_id owner token lease_id": FENCE,
    },
    "fail_task": {
        "result": ENDS,
        "error reason error_message details exception": WHY,
        "worker worker_id owner token lease_id": FENCE,
        "delay delay_seconds backoff retry_at run_at retry_after": BUDGET,
    },
    "get_task_output": {
        "lines tail_lines n_lines num_lines last_lines line_count tail head n": BYTES,
        "stream stdout stderr channel": BOTH,
        "follow wait watch stream_output": FOLLOW,
    },
}

TOOLS = {
    "create_task": """run start submit enqueue queue schedule add new spawn launch execute exec background bash shell
        command process job""",
    "create_tasks": "bulk batch add_tasks submit_tasks create_many bulk_create batch_create",
    "list_tasks": "get_tasks fetch_tasks list tasks find search query show jobs",
    "get_task": "status state describe info read fetch check inspect poll result progress",
    "update_task": "edit modify change set patch pause resume reschedule prioritize rename",
    "cancel_task": "kill stop abort terminate end interrupt",
    "delete_task": "remove purge clear drop",
    "retry_task": "rerun restart repeat resubmit requeue",
    "wait_for_tasks": "wait await join sleep block",
    "get_task_output": "output log logs tail stdout stderr cat",
    "get_stats": "stats statistics health metrics summary dashboard ping",
    "show_board": "board board_data kanban",
    "claim_task": """acquire acquire_task take take_task next next_task get_next_task fetch_next_task pull pop dequeue
        lease reserve checkout claim_next claim_tasks""",
    "heartbeat_task": "heartbeat keepalive keep_alive extend extend_claim renew report_progress update_progress touch",
    "complete_task": "complete finish done ack ack_task acknowledge submit_result mark_done resolve",
    "fail_task": "fail nack nack_task reject release release_task unclaim give_back",
}
ORDER = (  # of two words in one name the more telling one comes first: get_task_status, tail_output
    *("get_task_output", "wait_for_tasks", "get_stats", "retry_task", "cancel_task", "delete_task", "update_task"),
    *("claim_task", "heartbeat_task", "complete_task", "fail_task", "create_task", "get_task", "list_tasks"),
)


def refuse_wishes(tool: str, names: Collection[str]) -> None:
    """Raise InvalidInput with what to do, if one of the unknown names is a wish that is known."""
    for words, text in UNKNOWN.get(tool, {}).items() if names else ():
        if found := next((name for name in names if name.lower() in words.split()), None):
            raise InvalidInput(f"Unknown argument {shown(found)}. {text}")
    if tool == "get_stats" and names:
        raise InvalidInput(f"Unknown argument {shown(min(names))}. get_stats takes no arguments.")


def unknown_tool(name: str, known: Set[str]) -> str:
    """The sentence for a tool that is none: what was meant, else what there is."""
    bare = re.split(r"__|[.:/]", name[-100:])[-1]
    snake = snake_case(bare).removeprefix("taskorch_")
    exact = [tool for tool in TOOLS if snake in (tool, *TOOLS[tool].split())]
    if exact and not known & set(exact):
        return f"Unknown tool: {shown(name)}. {NO_BOARD if exact == ['show_board'] else NO_WORKERS}"
    exact = [tool for tool in exact if tool in known]
    near = exact + difflib.get_close_matches(snake, known, n=1, cutoff=0.88)
    near += [tool for tool in ORDER if tool in known and set(snake.split("_")) & set(TOOLS[tool].split())]
    near += difflib.get_close_matches(snake, known, n=1, cutoff=0.6)
    meant = f"Did you mean {near[0]!r}?" if near else f"Use one of: {', '.join(known)}."
    return f"Unknown tool: {shown(name)}. {meant}"
