/**
 * Property tests take the same values in every run, so that what fails was changed. VMFERRY_SEED=N takes others, and VMFERRY_SEED=random others each time: then
 * fast-check prints the seed of what fails.
 */
const fc = require('fast-check');

const seed = process.env.VMFERRY_SEED ?? '1';
fc.configureGlobal({ ...fc.readConfigureGlobal(), ...(seed !== 'random' && { seed: Number(seed) }) });
