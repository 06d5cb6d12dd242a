/** A mirror that ended before its time, ended without having copied everything, or cannot begin. */
export class MirrorFailed extends Error {
  override readonly name = 'MirrorFailed';
}
