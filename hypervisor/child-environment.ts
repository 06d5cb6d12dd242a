/**
 * What a child gets of our environment: where programs, modules and temporary files are, and how text is written. Not ours as a whole: it may have
 * the key to Temporal, and whoever takes over a QEMU can read its environment.
 */
export function childEnvironment(more?: RegExp): NodeJS.ProcessEnv {
  const passed = /^(PATH|HOME|LANG|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|QEMU_MODULE_DIR)$/;
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => passed.test(name) || more?.test(name)));
}

/** What a guard gets besides: how Node runs, and settings of ours, but no keys. */
export const GUARDS_TOO = /^(NODE_OPTIONS|VMFERRY_(?!PAYLOAD).*)$/;
