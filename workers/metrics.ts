import { isIP } from 'node:net';
import { type MetricMeter, noopMetricMeter } from '@temporalio/common';
import { type PrometheusMetricsExporter, Runtime } from '@temporalio/worker';
import { METRICS, type MetricName, record } from '../workflows/metric-table';
import { CONTROL_QUEUE } from '../workflows/messages';

/** The address where Prometheus finds this process's metrics cannot be had; the message says why. */
export class MetricsUnavailable extends Error {
  override readonly name = 'MetricsUnavailable';
}

/** `127.0.0.1:9464` or `[::1]:9464`. Throws `MetricsUnavailable` if it is nothing of the kind. */
export function metricsAddress(text: string): string {
  const [, six, four, port] = /^(?:\[(.+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text) ?? [];
  const isAddress = six === undefined ? isIP(four ?? '') === 4 : isIP(six) === 6;
  if (!isAddress || Number(port) < 1 || Number(port) > 65_535) throw new MetricsUnavailable(`"${text}" is no address for metrics: give one of this machine and a port, such as 127.0.0.1:9464 or [::1]:9464`);
  return text;
}

/** What the SDK's runtime serves there, beside its own metrics. */
export function prometheusOptions(address: string): PrometheusMetricsExporter {
  const buckets = Object.entries(METRICS).flatMap(([name, metric]) => ('buckets' in metric ? [[name, [...metric.buckets]] as [string, number[]]] : []));
  return { prometheus: { bindAddress: metricsAddress(address), histogramBucketOverrides: Object.fromEntries(buckets) } };
}

/** A second process on one port is the usual reason. */
export function explainMetrics(address: string, error: Error): Error {
  return new MetricsUnavailable(`metrics cannot be served at ${address} (${/in use/i.test(error.message) ? 'something listens there already' : error.message}): end that, or give another address (--metrics, or VMFERRY_METRICS)`, { cause: error });
}

/** Whether anybody could read them. */
export const metricsAreOn = (): boolean => Runtime.instance().metricMeter !== noopMetricMeter;

/** A counter that is not there until its first step hides that step from `increase()`. With the labels that the SDK gives to what workflows count. */
export function countFromZero(meter: MetricMeter, namespace: string): void {
  for (const [name, metric] of Object.entries(METRICS)) {
    if (metric.origin === 'workflow' && 'fromStart' in metric) record(meter, name as MetricName, 0, { namespace, taskQueue: CONTROL_QUEUE, workflowType: 'migrateVm' } as never);
  }
}
