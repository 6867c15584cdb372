// Calls an HBONE end from Node: `node client.mjs <port>`. Prints one line of JSON with what it saw.
import http2 from 'node:http2';
import crypto from 'node:crypto';

const session = http2.connect(`http://127.0.0.1:${process.argv[2]}`);
session.on('error', (error) => { console.error(error); process.exit(1); });

function call(headers, body) {
  return new Promise((resolve) => {
    const seen = { status: 0, bytes: 0, code: 0 };
    const hash = crypto.createHash('sha256');
    const stream = session.request(headers, { endStream: false });
    stream.on('response', (h) => {
      seen.status = h[':status'];
      seen.baggage = h['baggage'];
      if (seen.status === 200) stream.end(body); else stream.close();
    });
    stream.on('data', (chunk) => { seen.bytes += chunk.length; hash.update(chunk); });
    stream.on('error', (error) => { seen.error = error.code; });
    stream.on('close', () => {
      seen.code = stream.rstCode;
      seen.same = hash.digest('hex') === crypto.createHash('sha256').update(body).digest('hex');
      resolve(seen);
    });
  });
}

const connect = (authority) => ({ ':method': 'CONNECT', ':authority': authority });
const big = crypto.randomBytes(20 << 20);
const result = {
  echo: await call(connect('echo:80'), big),
  parallel: await Promise.all(Array.from({ length: 50 }, () => call(connect('echo:80'), Buffer.from('hello')))),
  refused: await call(connect('refuse:80'), Buffer.alloc(0)),
  reset: await call(connect('reset:80'), Buffer.from('x')),
  get: await call({ ':method': 'GET', ':path': '/' }, Buffer.alloc(0)),
};
console.log(JSON.stringify(result));
session.close();
