// The parts of a strip that shows attention.

const MOST_CELLS = 160;

/** Cells of a strip: {start, end, share, heat} in tokens. The first block is a sink, so it sets no scale. */
export function cellsOf({ block_size: size, shares }) {
  const per = Math.ceil(shares.length / MOST_CELLS);
  const cells = [];
  for (let first = 0; first < shares.length; first += per) {
    const some = shares.slice(first, first + per);
    cells.push({ start: first * size, end: (first + some.length) * size, share: some.reduce((sum, one) => sum + one, 0) });
  }
  const most = Math.max(...cells.slice(1).map((cell) => cell.share), 1e-9);
  return cells.map((cell) => ({ ...cell, heat: Math.sqrt(Math.min(1, cell.share / most)) }));
}
