// `cluster.js PORT`: a primary that accepts and sends each connection to one of two workers.
'use strict';
const cluster = require('cluster');
const http = require('http');

cluster.schedulingPolicy = cluster.SCHED_RR;
if (cluster.isPrimary) {
  for (let i = 0; i < 2; i++) cluster.fork();
  process.on('SIGTERM', () => cluster.disconnect(() => process.exit(0)));
} else {
  const server = http.createServer((request, response) => response.end(String(process.pid)));
  server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 1024 });
}
