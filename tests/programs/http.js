// `http.js server|client PORT`: an HTTP server, and a client that checks what it gets.
'use strict';
const http = require('http');
const crypto = require('crypto');

const [role, port] = [process.argv[2], Number(process.argv[3])];
const big = Buffer.alloc(3000017);
for (let i = 0; i < big.length; i++) big[i] = (i * 31 + (i >> 8)) & 255;
const digest = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');

function serve() {
  const server = http.createServer((request, response) => {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      if (request.method === 'POST') response.end(digest(Buffer.concat(parts)));
      else if (request.url === '/big') response.end(big);
      else response.end(`hello ${request.url}`);
      if (request.url === '/quit') {
        server.close();
        server.closeIdleConnections();
      }
    });
  });
  server.listen({ port, host: '127.0.0.1', backlog: 1024 });
}

function fetchOne(path, options) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host: '127.0.0.1', port, path, ...options }, (response) => {
      const parts = [];
      response.on('data', (part) => parts.push(part));
      response.on('end', () => resolve(Buffer.concat(parts)));
      response.on('error', reject);
    });
    request.on('error', reject);
    request.end(options.body);
  });
}

function expect(got, wanted, what) {
  if (!Buffer.from(wanted).equals(got)) throw new Error(`${what}: ${got.length} bytes that differ`);
}

async function client() {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 20 });
  const start = process.hrtime.bigint();
  for (let round = 0; round < 40; round++) {
    const paths = Array.from({ length: 50 }, (_, i) => `/${round}-${i}`);
    const answers = await Promise.all(paths.map((path) => fetchOne(path, { agent })));
    answers.forEach((answer, i) => expect(answer, `hello ${paths[i]}`, paths[i]));
  }
  console.log('requests/s', 2000 / (Number(process.hrtime.bigint() - start) / 1e9));
  const posts = Array.from({ length: 8 }, () => fetchOne('/post', { agent, method: 'POST', body: big }));
  (await Promise.all(posts)).forEach((answer) => expect(answer, digest(big), 'an upload'));
  for (let i = 0; i < 100; i++) expect(await fetchOne('/closed', { agent: false }), 'hello /closed', 'closed');
  const downloads = await Promise.all([fetchOne('/big', { agent }), fetchOne('/big', { agent })]);
  downloads.forEach((answer) => expect(answer, big, 'a download'));
  const fetched = await (await fetch(`http://127.0.0.1:${port}/fetch`)).text();
  expect(Buffer.from(fetched), 'hello /fetch', 'fetch');
  expect(await fetchOne('/quit', { agent: false }), 'hello /quit', 'quit');
  process.exit(0);
}

if (role === 'server') serve();
else client().catch((e) => { console.error(e); process.exit(1); });
