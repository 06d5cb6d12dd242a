import { createConnection } from 'node:net';
import { MirrorFailed } from './mirror-failed';

const GREETING = Buffer.from('NBDMAGIC');

/**
 * Resolves when an NBD server greets at this address. Asked before QEMU is told to connect: that does so with its main loop held, and with it
 * the guest, until its `open-timeout` (measured: a guest silent for 20 s, two disks whose storage daemon was gone). Throws `MirrorFailed`.
 */
export async function nbdAnswers(host: string, port: number, timeoutMs: number, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  const socket = createConnection({ host, port });
  const late = AbortSignal.timeout(timeoutMs);
  try {
    await new Promise<void>((resolve, reject) => {
      const fail = (why: string) => reject(new MirrorFailed(`no NBD server answers on ${host} port ${port} (${why}): the destination's storage daemon has ended, or hangs, or the link is dead`));
      let heard = Buffer.alloc(0);
      socket.on('error', (error) => fail(error.message)).on('close', () => fail('it closed the connection'));
      socket.on('data', (chunk) => {
        heard = Buffer.concat([heard, chunk]);
        if (heard.length < GREETING.length) return;
        if (heard.subarray(0, GREETING.length).equals(GREETING)) resolve();
        else fail('what answers there is no NBD server');
      });
      late.addEventListener('abort', () => fail(`nothing heard for ${timeoutMs / 1000} s`));
      signal?.addEventListener('abort', () => reject(signal.reason as Error));
    });
  } finally {
    socket.destroy();
  }
}
