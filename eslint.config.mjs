import tseslint from 'typescript-eslint';

/** Imports point one way: client -> workflows (types) -> activities (types); activities -> hypervisor -> qmp (docs/architecture.md). */
const forbid = (...groups) => ({ 'no-restricted-imports': ['error', { patterns: groups }] });

export default tseslint.config(
  { ignores: ['dist/', 'node_modules/', 'coverage/', '**/*.js', '**/*.mjs', 'bin/'] },
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: { parserOptions: { project: './tsconfig.json' } },
    rules: {
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/require-await': 'off',
    },
  },
  { files: ['qmp/**'], rules: forbid({ group: ['@temporalio/*', '../hypervisor/*', '../activities/*', '../workflows/*'], message: 'qmp/ holds the protocol only' }) },
  { files: ['hypervisor/**'], rules: forbid({ group: ['@temporalio/*', '../activities/*', '../workflows/*', '../workers/*', '../client/*'], message: 'hypervisor/ knows no Temporal' }) },
  {
    files: ['workflows/**'],
    rules: {
      '@typescript-eslint/no-restricted-imports': ['error', {
        patterns: [
          { group: ['node:*', 'fs', 'path', 'net', 'child_process', '../qmp/*', '../workers/*', '../client/*'], message: 'workflows do no I/O' },
          { group: ['../activities/*', '!../activities/errors', '../hypervisor/*', '!../hypervisor/size'], allowTypeImports: true, message: 'types only; size.ts and errors.ts alone are pure' },
        ],
      }],
      'no-restricted-globals': ['error', 'process', 'setInterval', 'fetch', 'Buffer'],
    },
  },
  { files: ['test/**', 'bench/**'], rules: { '@typescript-eslint/no-unsafe-assignment': 'off', '@typescript-eslint/no-unsafe-member-access': 'off', '@typescript-eslint/unbound-method': 'off' } },
);
