import { DefaultLogger, Runtime } from '@temporalio/worker';
import { type Logger, pino } from 'pino';
import { explainMetrics, prometheusOptions } from './metrics';

/** One line of JSON an event on stderr, or coloured text for people. stdout stays free for results. */
export function createLogger(options: { pretty: boolean; level?: string }): Logger {
  const level = options.level ?? process.env['VMFERRY_LOG'] ?? 'info';
  // A task token would let its reader answer for the worker.
  const redact = ['taskToken', '*.taskToken'];
  const colorize = process.stderr.isTTY && !process.env['NO_COLOR'];
  if (options.pretty) return pino({ level, redact, transport: { target: 'pino-pretty', options: { destination: 2, colorize, ignore: 'pid,hostname', translateTime: 'HH:MM:ss.l' } } });
  return pino({ level, redact }, pino.destination({ dest: 2, sync: true }));
}

/** Sends the SDK's lines, and its core's, through the same logger; with an address, such as `127.0.0.1:9464`, serves Prometheus metrics there (docs/metrics.md). Once a process. */
export function installRuntime(logger: Logger, metrics?: string): void {
  const levels = { TRACE: 'trace', DEBUG: 'debug', INFO: 'info', WARN: 'warn', ERROR: 'error' } as const;
  const prometheus = metrics === undefined ? undefined : prometheusOptions(metrics);
  try {
    Runtime.install({
      logger: new DefaultLogger('INFO', ({ level, message, meta }) => logger[levels[level]](meta ?? {}, message)),
      telemetryOptions: { ...(prometheus && { metrics: { ...prometheus, attachServiceName: false } }), logging: { forward: {}, filter: { core: 'WARN', other: 'ERROR' } } },
      shutdownSignals: [],
    });
  } catch (error) {
    throw metrics === undefined ? error : explainMetrics(metrics, error as Error);
  }
}
