/**
 * Replays every history of a folder on the built workflows (or on another bundle of them), and prints what failed as JSON. It needs one protobufjs for all of the SDK's packages
 * (package.json pins it): with a copy each they do not know one another's types.
 */
const { readdirSync, readFileSync } = require('node:fs');
const { join } = require('node:path');
const { Worker, Runtime, DefaultLogger } = require('@temporalio/worker');

async function main(folder, bundle = 'workflow-bundle') {
  Runtime.install({ logger: new DefaultLogger('ERROR') });
  const histories = readdirSync(folder)
    .filter((file) => file.endsWith('.json'))
    .map((file) => ({ workflowId: `migrate/${file.replace('.json', '')}`, history: JSON.parse(readFileSync(join(folder, file), 'utf8')) }));
  const failures = [];
  for await (const { workflowId, error } of Worker.runReplayHistories({ workflowBundle: { codePath: join(__dirname, `../../dist/workers/${bundle}.js`) }, sinks: { exporter: { export: { fn: () => undefined } } } }, histories)) if (error) failures.push(`${workflowId}: ${error.message}`);
  console.log(JSON.stringify({ replayed: histories.length, failures }));
}

main(...process.argv.slice(2)).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
