// Version 1 of the TypeScript SDK, which speaks 2025-11-25 and is inside most of today's hosts.

import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { ResourceUpdatedNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import { command, env, run } from './loop.mjs';

const client = new Client({ name: 'peer', version: '1' }, { capabilities: {} });
const transport = new StdioClientTransport({ command, env });
let version;
transport.setProtocolVersion = (negotiated) => { version = negotiated; };
await client.connect(transport);

await run(
  client,
  () => version,
  (name, given) => client.callTool({ name, arguments: given }),
  async (uri, heard) => {
    client.setNotificationHandler(ResourceUpdatedNotificationSchema, (told) => told.params.uri === uri && heard());
    await client.subscribeResource({ uri });
  },
);
