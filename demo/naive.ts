export async function runNaive(_say: (text: string) => void, _json: boolean): Promise<number> {
  throw new Error('x');
}
