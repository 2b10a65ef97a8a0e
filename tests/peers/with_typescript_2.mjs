// Version 2 of the TypeScript SDK's client, in both protocol eras.

import { Client } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import { command, env, mode, run } from './loop.mjs';

const client = new Client({ name: 'peer', version: '1' }, { capabilities: {}, versionNegotiation: { mode } });
await client.connect(new StdioClientTransport({ command, env }));

await run(
  client,
  () => client.getNegotiatedProtocolVersion(),
  (name, given) => client.callTool({ name, arguments: given }),
  async (uri, heard) => {
    client.setNotificationHandler('notifications/resources/updated', (told) => told.params.uri === uri && heard());
    await (mode === 'legacy' ? client.subscribeResource({ uri }) : client.listen({ resourceSubscriptions: [uri] }));
  },
);
