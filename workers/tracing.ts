import { setTimeout as delay } from 'node:timers/promises';
import type { Tracing } from './tracing-sdk';

/** What a collector that does not answer may cost a command at its end. */
const FLUSH_MS = 2_000;
let started: Promise<Tracing> | undefined;

/** Whether OpenTelemetry's standard variables ask for traces. */
export function tracesAreAsked({ OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT }: NodeJS.ProcessEnv = process.env): boolean {
  if (OTEL_SDK_DISABLED?.toLowerCase() === 'true' || OTEL_TRACES_EXPORTER === 'none') return false;
  return OTEL_TRACES_EXPORTER === 'otlp' || Boolean(OTEL_EXPORTER_OTLP_ENDPOINT ?? OTEL_EXPORTER_OTLP_TRACES_ENDPOINT);
}

/** What this process needs to take part in traces; undefined, and nothing of OpenTelemetry loaded, unless they are asked for. `service` is its name there. */
export async function tracing(service: string, warn: (message: string) => void = () => undefined): Promise<Tracing | undefined> {
  if (!tracesAreAsked()) return undefined;
  return await (started ??= import('./tracing-sdk').then(({ startTracing }) => startTracing(service, warn)));
}

/** Sends what is still here. */
export async function flushTraces(): Promise<void> {
  if (started) await Promise.race([started.then(({ flush }) => flush()), delay(FLUSH_MS, undefined, { ref: false })]).catch(() => undefined);
}
