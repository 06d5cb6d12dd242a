/** Whatever an attempt makes inside QEMU begins with this, so that leftovers can be told from everybody else's nodes, jobs and objects. */
export const OURS = 'vmferry-';
