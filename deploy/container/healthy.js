'use strict';
// Docker's health checks. Exit code 0: well. Kept to Node's own modules: it starts in 40 ms, every 10 s, in every container.
//
//   healthy.js launcher SOCKET   a launcher listens
//   healthy.js worker METRICS    a worker polls Temporal: its metrics say for how many kinds of task it does
const { connect } = require('node:net');

const [kind, where] = process.argv.slice(2);
const ill = (why) => {
  process.stderr.write(`${why}\n`);
  process.exit(1);
};

if (kind === 'launcher') {
  connect(where, () => process.exit(0)).on('error', (error) => ill(error.message));
} else {
  fetch(where)
    .then((response) => response.text())
    .then((text) => (/^temporal_num_pollers\{[^}]*\} [1-9]/m.test(text) ? process.exit(0) : ill('it does not poll Temporal')))
    .catch((error) => ill(String(error.cause ?? error)));
}
