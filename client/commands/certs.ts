import { X509Certificate } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { join, resolve } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import { hostConfigSchema } from '../../hypervisor/host-config';
import { CertificatesRefused, ensureCertificates, ensureKeys, type HostFolder, type LabHost } from '../../hypervisor/lab-certificates';
import { describeFinding, inspectTls } from '../../hypervisor/tls-files';
import { EXIT, UsageError } from '../exit-codes';
import { print, say } from '../output';
import { collectOption, wholeOption } from '../quantities';

const HELP = `
For a lab. Makes a CA below the folder, kept there, and for each host a folder DIR/HOST, ready to be copied to that host as
the "dir" of its configuration. Run again with further hosts it uses the same CA, and overwrites nothing. To renew a host's
certificates, move its folder away and run it again. With --psk it makes a file of shared keys, a key for each host, instead.

Examples:
  $ vmferry certs init certs --host host-a --host host-b
  $ vmferry certs init certs --host host-c --address host-c=10.0.0.13 --days 90
  $ scp -r certs/host-a root@host-a:/etc/vmferry/tls`;

interface InitFlags {
  host: string[];
  address: { host?: string; address: string }[];
  days: number;
  psk?: boolean;
}

export function registerCerts(program: Command): void {
  const certs = program.command('certs').description('certificates for disks and memory on their way between hosts');
  certs
    .command('init <dir>')
    .description('make a CA and certificates of hosts, or shared keys, for a lab')
    .requiredOption('--host <host>', 'a host by the name in its configuration; can be repeated', hostOption)
    .option('--address <address>', "an address for a host's certificate, HOST=IP, or IP if there is one host; can be repeated. Not needed: hosts know each other by name", addressOption, [])
    .option('--days <n>', 'how long new certificates are valid', wholeOption(1, 3650), 365)
    .option('--psk', 'make shared keys in place of certificates')
    .addHelpText('after', HELP)
    .action(init);
}

async function init(dir: string, { host: names, address: addresses, days, psk }: InitFlags): Promise<void> {
  const folder = resolve(dir);
  if (psk && addresses.length > 0) throw new UsageError('--address is for certificates: leave it out with --psk');
  const hosts = withAddresses([...new Set(names)], addresses);
  const folders = await (psk ? ensureKeys(folder, hosts) : ensureCertificates(folder, hosts, days)).catch((error: Error) => {
    throw error instanceof CertificatesRefused ? new UsageError(error.message) : error;
  });
  for (const one of folders) print(`${one.made ? 'made ' : 'there'}  ${one.folder}${psk ? '' : `  ${validUntil(one)}`}`);
  const field = psk ? 'psk' : 'tls';
  print(`Copy each folder to its host, readable by the user of its agent alone${psk ? '; after a host was added, also to those that have one' : ''}. In the host's configuration:\n  ${field}: { dir: /etc/vmferry/tls }`);
  print(psk ? `${join(folder, 'keys.psk')} has all keys: keep it.` : `${join(folder, 'ca-key.pem')} signs certificates for further hosts: keep it, away from the hosts.`);
  const findings = folders.flatMap(({ host, folder: at }) => inspectTls({ name: host, [field]: { dir: at } }));
  findings.forEach((finding) => say(`${finding.severity === 'warning' ? 'warning: ' : ''}${describeFinding(finding)}`));
  if (findings.some(({ severity }) => severity === 'blocker')) process.exitCode = EXIT.failed;
}

function validUntil({ folder }: HostFolder): string {
  const file = join(folder, 'server-cert.pem');
  return existsSync(file) ? `valid until ${new Date(new X509Certificate(readFileSync(file)).validTo).toISOString().slice(0, 10)}` : '';
}

function withAddresses(names: string[], addresses: InitFlags['address']): LabHost[] {
  for (const { host, address } of addresses) {
    if (host === undefined && names.length > 1) throw new UsageError(`--address ${address}: there are ${names.length} hosts: say whose it is, such as ${names[0]}=${address}`);
    if (host !== undefined && !names.includes(host)) throw new UsageError(`--address ${host}=${address}: ${host} is not one of --host ${names.join(', ')}`);
  }
  return names.map((name) => ({ name, addresses: addresses.filter(({ host }) => host === undefined || host === name).map(({ address }) => address) }));
}

function hostOption(text: string, before?: string[]): string[] {
  if (!hostConfigSchema.shape.name.safeParse(text).success) throw new InvalidArgumentError('A host name has up to 63 lower-case letters, digits, "." or "-".');
  return collectOption(text, before);
}

function addressOption(text: string, before: InitFlags['address']): InitFlags['address'] {
  const [, host, address] = /^(?:([^=]*)=)?(.*)$/.exec(text) as unknown as [string, string | undefined, string];
  if (isIP(address) === 0) throw new InvalidArgumentError('Give an IPv4 or IPv6 address, such as host-a=10.0.0.11.');
  return [...before, { ...(host !== undefined && { host }), address }];
}
