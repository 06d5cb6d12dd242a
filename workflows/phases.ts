/** The phases of a migration, in order: a search attribute, and the names in every log line. */
export const PHASES = ['preflight', 'reserve', 'prepare', 'export', 'mirror', 'converge', 'memory', 'switchover', 'cleanup'] as const;
export type Phase = (typeof PHASES)[number];
