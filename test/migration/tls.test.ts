import { join } from 'node:path';
import { ensureCertificates } from '../../hypervisor/lab-certificates';
import { expectClean, expectWhole } from '../support/expect';
import { Lab } from '../support/lab';

let lab: Lab;
beforeAll(async () => {
  lab = await Lab.open({});
  await ensureCertificates(join(lab.folder, 'certs'), [{ name: 'host-a' }, { name: 'host-b' }], 100);
  await lab.addHost('host-a', { address: '127.0.0.1', tls: { dir: join(lab.folder, 'certs/host-a') } });
  await lab.addHost('host-b', { address: '::1', tls: { dir: join(lab.folder, 'certs/host-b') } });
}, 60_000);
afterEach(async () => await lab.reset());
afterAll(async () => await lab?.close());

test('a guest that writes moves by TLS, there and back, with every block and page, and nothing is left behind', async () => {
  const guest = await lab.boot('host-a', 'secret');
  await lab.move('secret', 'host-b');
  await lab.move('secret', 'host-a');
  await expectWhole(guest);
  await expectClean(lab, { 'host-a': ['secret'] });
}, 120_000);
