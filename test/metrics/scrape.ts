/** One scrape of a Prometheus endpoint, as far as tests ask. */
export class Scrape {
  /** Of each family: `counter`, `gauge` or `histogram`. */
  readonly types = new Map<string, string>();
  readonly samples: { name: string; labels: Record<string, string>; value: number }[] = [];

  constructor(text: string) {
    for (const line of text.split('\n')) {
      const [, family, type] = /^# TYPE (\S+) (\S+)$/.exec(line) ?? [];
      if (family !== undefined) this.types.set(family, type!);
      const [, name, labels, value] = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
      if (name === undefined) continue;
      this.samples.push({ name, labels: Object.fromEntries([...(labels ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((match) => [match[1]!, match[2]!])), value: Number(value) });
    }
  }

  static async of(address: string): Promise<Scrape> {
    const response = await fetch(`http://${address}/metrics`);
    return new Scrape(await response.text());
  }

  /** Samples of this name that have all of these labels. */
  find(name: string, labels: Record<string, string> = {}): { labels: Record<string, string>; value: number }[] {
    return this.samples.filter((one) => one.name === name && Object.entries(labels).every(([label, value]) => one.labels[label] === value));
  }

  /** Their sum; undefined if there are none. */
  sum(name: string, labels: Record<string, string> = {}): number | undefined {
    const found = this.find(name, labels);
    return found.length === 0 ? undefined : found.reduce((sum, { value }) => sum + value, 0);
  }
}
