// What every JavaScript peer goes through: see loop.py, which says the same for Python.

const TOOLS = [
  'create_task', 'create_tasks', 'list_tasks', 'get_task', 'update_task', 'cancel_task', 'delete_task', 'retry_task',
  'wait_for_tasks', 'get_task_output', 'get_stats',
];
const NOWHERE = 't0000000000000000';
const PATIENCE_MS = 90_000;

export const [, , command, mode] = process.argv;
export const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith('TASKORCH_')));
export const ok = (what) => console.log(`ok ${what}`);

/** The text, which must hold all that is wanted. */
export function has(text, ...wanted) {
  for (const part of wanted) if (!text.includes(part)) throw new Error(`'${part}' is missing in:\n${text}`);
  return text;
}

export function idIn(text) {
  return has(text, 't') && text.match(/t[0-9a-hjkmnp-tv-z]{16}/)[0];
}

/** The payload of a command. */
export const shell = (line) => ({ argv: ['sh', '-c', line] });

/** Run a connected client through everything; `more` may add what only it can do. */
export async function run(client, version, call, subscribed, more = async () => {}) {
  const late = setTimeout(() => { console.error('took too long'); process.exit(1); }, PATIENCE_MS);
  console.log(`era ${version()}`);
  const names = (await client.listTools()).tools.map((tool) => tool.name).sort();
  if (String(names) !== String(TOOLS.sort())) throw new Error(`not the tools we have: ${names}`);
  ok('tools');
  const failed = await whole(call);
  const read = async (uri) => (await client.readResource({ uri })).contents[0].text;
  has(await read('tasks://recent'), failed);
  has(await read(`task://${failed}`), failed, 'exit_code');
  has(await read(`task://${failed}/output`), 'broken');
  ok('resources');
  const prompt = await client.getPrompt({ name: 'diagnose_failure', arguments: { task: failed } });
  has(prompt.messages[0].content.text, failed, 'broken');
  ok('prompts');
  await hearsOfChanges(call, subscribed);
  await more();
  await client.close();
  clearTimeout(late);
  console.log('end');
}

/** The text of a result; whether it is an error must be as expected. */
export function textOf(result, refused = false) {
  const { text } = result.content[0];
  if (Boolean(result.isError) !== refused) throw new Error(text);
  return text;
}

/** From creation to deletion; the id of a task that failed. */
async function whole(call) {
  const create = async (given) => idIn(textOf(await call('create_task', given)));
  const ended = async (id) => textOf(await call('wait_for_tasks', { task_ids: [id], timeout_seconds: 30 }));
  const task = await create({ payload: shell('echo written by a peer'), name: 'peer' });
  has(await ended(task), task, 'completed');
  has(textOf(await call('get_task_output', { task_id: task })), 'written by a peer');
  ok('create, wait, output');
  has(textOf(await call('get_task', { task_id: NOWHERE }), true), NOWHERE, 'list_tasks');
  const failed = await create({ payload: shell('echo broken >&2; exit 3') });
  has(await ended(failed), 'failed');
  has(textOf(await call('get_task', { task_id: failed })), 'exit_code', 'broken');
  ok('errors');
  has(textOf(await call('list_tasks', {})), task, failed);
  ok('list');
  const long = await create({ payload: shell('sleep 60') });
  await call('cancel_task', { task_id: long, reason: 'the peer says so' });
  has(await ended(long), long, 'cancelled');
  has(textOf(await call('delete_task', { task_id: long })), long);
  has(textOf(await call('get_task', { task_id: long }), true), long);
  ok('cancel, delete');
  return failed;
}

/** `subscribed(uri, heard)` calls `heard` when the resource has changed. */
async function hearsOfChanges(call, subscribed) {
  const task = idIn(textOf(await call('create_task', { payload: shell('sleep 60') })));
  const heard = new Promise((resolve) => { subscribed(`task://${task}`, resolve).then(async () => {
    await call('cancel_task', { task_id: task });
  }); });
  await heard;
  ok('updates');
}
