import { rm } from 'node:fs/promises';
import type { QmpConnection } from '../qmp/connection';

/**
 * Activates the images of a guest that arrived paused, without running it. `late-block-activate` leaves them to `cont`; a mirror of an
 * inactive image aborts QEMU 7.2 (measured: the guest's next move killed it). QEMU has no command for it before `blockdev-set-active`
 * (10.0), but to export a node activates it (QEMU's block/export/export.c), so each is exported, read-only, for a moment, on a socket
 * that nobody knows. The guest stays paused; its disks' locks are taken as by `cont`.
 */
export async function activateImages(qmp: QmpConnection, socketPath: string): Promise<void> {
  const nodes = (await qmp.execute('query-block')).map((block) => block.inserted?.['node-name']).filter((node) => node !== undefined);
  const deleted = qmp.listen('BLOCK_EXPORT_DELETED');
  // An agent that died in the middle left the server, and perhaps an export.
  await qmp.execute('nbd-server-stop').catch(() => undefined);
  await rm(socketPath, { force: true });
  await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socketPath } } });
  try {
    for (const [index, node] of nodes.entries()) {
      const id = `vmferry-activate-${index}`;
      await qmp.execute('block-export-add', { type: 'nbd', id, 'node-name': node, name: id, writable: false });
      await qmp.execute('block-export-del', { id, mode: 'hard' });
      for (let event = await deleted.next({ timeoutMs: 10_000 }); event.data.id !== id; ) event = await deleted.next({ timeoutMs: 10_000 });
    }
  } finally {
    deleted.close();
    await qmp.execute('nbd-server-stop');
    await rm(socketPath, { force: true });
  }
}
