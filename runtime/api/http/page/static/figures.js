// Numbers as people read them.

const WHOLE = new Intl.NumberFormat("en");

/** 12,345 */
export function whole(number) {
  return WHOLE.format(Math.round(number));
}

/** "1 token", "12,345 tokens" */
export function counted(number, noun) {
  return `${whole(number)} ${noun}${Math.round(number) === 1 ? "" : "s"}`;
}

/** "0.03 s", "0.3 s", "42 s", "3 min 5 s", "2 h 10 min" */
export function duration(seconds) {
  if (seconds < 0.095) return `${seconds.toFixed(2)} s`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

/** "3.2 MB", "1.4 GB" */
export function bytes(number) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = number < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(number) / 3));
  const shown = number / 1000 ** power;
  return `${power && shown < 99.5 ? shown.toFixed(1) : Math.round(shown)} ${units[power]}`;
}

/** "74.7", "1,182" */
export function rate(number) {
  return number < 99.95 ? number.toFixed(1) : whole(number);
}

/** The sentence under an answer: what was read, how fast, and what was attended. */
export function usageLine(usage) {
  const measured = usage.moorage?.[0] || {};
  const cached = usage.prompt_tokens_details?.cached_tokens;
  const parts = [`${counted(usage.prompt_tokens, "prompt token")}${cached ? `, ${whole(cached)} cached` : ""}`];
  if (measured.time_to_first_token_s != null) parts.push(`first token after ${duration(measured.time_to_first_token_s)}`);
  parts.push(counted(usage.completion_tokens, "token") + (measured.decode_tokens_per_s ? ` at ${rate(measured.decode_tokens_per_s)} tokens/s` : ""));
  // A short prompt is attended in full under a selection too; then no key is selected, and recall is not measured.
  const selects = measured.chosen_keys > 0 || (measured.chosen_keys == null && measured.recall != null);
  if (measured.budget_tokens && selects) parts.push(`at most ${whole(measured.budget_tokens)} tokens attended`);
  if (measured.recall != null) parts.push(`recall ${measured.recall.toFixed(3)}`);
  return parts.join(" · ");
}
