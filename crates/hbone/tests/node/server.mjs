// An HBONE end in Node: CONNECT over cleartext HTTP/2 with prior knowledge. Prints its port.
// The authority's host says what to do: echo (until the end, then end), refuse, reset (after one chunk, without ending), goaway.
import http2 from 'node:http2';

const server = http2.createServer({ settings: { initialWindowSize: 1 << 20 } });
server.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  const host = headers[':authority'].split(':')[0];
  if (headers[':method'] !== 'CONNECT' || !/^for="/.test(headers['forwarded'] ?? '')
      || !/^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/.test(headers['traceparent'] ?? '')) {
    stream.respond({ ':status': 400 }, { endStream: true });
  } else if (host === 'refuse') {
    stream.respond({ ':status': 503 }, { endStream: true });
  } else if (host === 'reset') {
    stream.respond({ ':status': 200 });
    stream.once('data', () => stream.destroy(new Error('reset')));
  } else {
    stream.respond({ ':status': 200, baggage: 'service.name=node' });
    stream.pipe(stream);
    if (host === 'goaway') stream.session.goaway();
  }
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('end', () => process.exit(0)).resume();
