'use strict';
/**
 * Loaded with `node --require` into an agent and its guards, so that test/chaos can stop them at an exact moment: around a QMP command, or around
 * a durable mark of who owns the guest. Tells the harness, over the UNIX socket VMFERRY_CHAOS, of the one moment that it waits for, and goes on when
 * the harness says so. Without a harness nothing is different.
 */
const { createConnection } = require('node:net');
const { basename, join } = require('node:path');
const { createInterface } = require('node:readline');

const DIST = join(__dirname, '../../dist');
const path = process.env.VMFERRY_CHAOS;

if (path && (process.argv.includes('agent') || process.argv.some((argument) => argument.endsWith('guard-main.js')))) {
  const role = process.argv.includes('agent') ? 'agent' : 'guard';
  const waiting = new Map();
  let awaited = null;
  let nextId = 1;
  const letGo = () => {
    waiting.forEach((go) => go());
    waiting.clear();
    awaited = null;
  };
  const socket = createConnection(path);
  socket.unref();
  socket.on('error', letGo).on('close', letGo);
  createInterface({ input: socket }).on('line', (line) => {
    const message = JSON.parse(line);
    if ('await' in message) awaited = message.await;
    if ('go' in message) {
      waiting.get(message.go)?.();
      waiting.delete(message.go);
    }
  });

  const reach = async (what, when, where) => {
    const host = /\/(host-[a-z]+)\//.exec(where)?.[1];
    if (!awaited || awaited.what !== what || awaited.when !== when || awaited.host !== host) return;
    const id = nextId++;
    await new Promise((go) => {
      waiting.set(id, go);
      socket.write(`${JSON.stringify({ id, pid: process.pid, role, what, when, host })}\n`);
    });
  };

  const { QmpConnection } = require(join(DIST, 'qmp/connection.js'));
  const execute = QmpConnection.prototype.execute;
  QmpConnection.prototype.execute = async function (command, ...rest) {
    await reach(command, 'before', this.path);
    const answer = execute.call(this, command, ...rest);
    answer.catch(() => undefined);
    await reach(command, 'sent', this.path);
    const value = await answer;
    await reach(command, 'after', this.path);
    return value;
  };

  const durable = require(join(DIST, 'hypervisor/durable.js'));
  const { writeDurably } = durable;
  durable.writeDurably = async (file, text) => {
    const mark = basename(file) === 'ownership.json' ? JSON.parse(text) : undefined;
    const what = mark && (mark.state === 'owner' && mark.attempt ? 'mark about-to-run' : `mark ${mark.state}`);
    if (what) await reach(what, 'before', file);
    await writeDurably(file, text);
    if (what) await reach(what, 'after', file);
  };
}
