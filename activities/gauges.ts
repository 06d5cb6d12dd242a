import type { MetricMeter } from '@temporalio/common';
import { type Labels, type NamesOf, record } from '../workflows/metric-table';

type GaugeName = NamesOf<{ kind: 'gauge' }>;
/** What one gauge shows now; made by `reading`, which knows the labels of each. */
export interface Reading {
  name: GaugeName;
  value: number;
  labels: Labels<GaugeName>;
}

export function reading<Name extends GaugeName>(name: Name, value: number, labels: Labels<Name>): Reading {
  return { name, value, labels: labels as Labels<GaugeName> };
}

/** Gauges about things that come and go. The SDK keeps a series for as long as the process lives: what is gone is shown as 0, never with its last value. */
export class Gauges {
  private shown = new Map<string, Reading>();

  constructor(private readonly meter: MetricMeter) {}

  /** Shows these, and nothing else of what was shown before. */
  show(readings: Reading[]): void {
    const now = new Map(readings.map((one) => [JSON.stringify([one.name, one.labels]), one]));
    for (const [key, { name, labels }] of this.shown) if (!now.has(key)) record(this.meter, name, 0, labels);
    for (const { name, value, labels } of now.values()) record(this.meter, name, value, labels);
    this.shown = now;
  }
}
