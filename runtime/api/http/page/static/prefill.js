// How far the prompt is read, and how long it still takes.

import { duration, whole } from "./figures.js";

const WINDOW_MS = 15_000;

/** Follows the progress events of one answer. */
export class Prefill {
  constructor() {
    this.marks = [];
    this.state = { total: 0, processed: 0 };
  }

  /** Takes the next event: {total, processed, time_ms}. */
  note(progress) {
    this.state = progress;
    this.marks.push(progress);
    while (this.marks.length > 2 && this.marks[1].time_ms < progress.time_ms - WINDOW_MS) this.marks.shift();
  }

  /** From 0 to 1; null while the request waits. */
  get share() {
    return this.state.total ? this.state.processed / this.state.total : null;
  }

  /** Seconds left at the speed of the last moments; null until it is known. */
  get secondsLeft() {
    const first = this.marks[0];
    const last = this.marks.at(-1);
    if (!last || last.processed <= first.processed) return null;
    return ((last.time_ms - first.time_ms) / 1000) * ((last.total - last.processed) / (last.processed - first.processed));
  }

  /** One sentence. */
  get sentence() {
    const { total, processed } = this.state;
    if (!total) return "Waiting for the server …";
    const left = this.secondsLeft;
    const time = left === null ? "" : `, ${duration(left)} left`;
    return `Reading ${whole(processed)} of ${whole(total)} tokens, ${Math.floor(100 * this.share)} %${time}`;
  }
}
