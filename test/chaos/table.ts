export function writeTable(_results: string, _document: string): void {}
