/** The one that the codec chooses on this processor: the last of those that the benchmarks with these names have. Pure. */
export function bestKernel(names) {
  const order = ['scalar', 'sse2', 'avx2', 'avx512'];
  return order.findLast((kernel) => names.some((name) => name.startsWith(`encode/${kernel}/`)));
}
