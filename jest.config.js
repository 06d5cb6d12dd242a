/** Tests drive real QEMU under TCG on two cores, and wait for most of their time: two files run at once (see scripts/test.sh). */
module.exports = {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  // They need root, or what takes minutes to build: cluster.sh, compose.sh and systemd.sh in scripts run them.
  testPathIgnorePatterns: ['/node_modules/', '<rootDir>/test/cluster/', '<rootDir>/test/compose/', '<rootDir>/test/systemd/'],
  transform: {
    '^.+\\.ts$': ['@swc/jest', { jsc: { parser: { syntax: 'typescript' }, target: 'es2022' }, module: { type: 'commonjs' }, sourceMaps: 'inline' }],
  },
  setupFiles: ['<rootDir>/test/property-seed.js'],
  testTimeout: 120_000,
  reporters: ['default', '<rootDir>/test/closing-line-reporter.js'],
};
