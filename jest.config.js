/** Tests drive real QEMU under TCG on two cores: files run one after the other (see scripts/test.sh). */
module.exports = {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  // They need what takes minutes to build: scripts/cluster.sh and scripts/compose.sh run them.
  testPathIgnorePatterns: ['/node_modules/', '<rootDir>/test/cluster/', '<rootDir>/test/compose/'],
  transform: {
    '^.+\\.ts$': ['@swc/jest', { jsc: { parser: { syntax: 'typescript' }, target: 'es2022' }, module: { type: 'commonjs' }, sourceMaps: 'inline' }],
  },
  testTimeout: 120_000,
  reporters: ['default', '<rootDir>/test/closing-line-reporter.js'],
};
