// Reads the text of one block into runs: plain, code, emphasis, links. It takes time in proportion to the text.

const MARKS = [["***", "strongEm"], ["___", "strongEm"], ["**", "strong"], ["__", "strong"], ["~~", "strike"], ["*", "em"], ["_", "em"]];
const BARE_LINK = /https?:\/\/[^\s<>"'`]+/y;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const MOST_DEPTH = 6;
const MOST_LINK = 4000; // characters of a link with its label

/** The runs of a text: strings, and records {kind, runs | text | href}. */
export function readRuns(text, depth = 0) {
  const reader = new Reader(text, depth);
  reader.read();
  return reader.runs;
}

/** The address of a link that may be followed: http and https only; null for any other. */
export function safeAddress(address) {
  try {
    const url = new URL(address);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}

class Reader {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.plain = "";
    this.runs = [];
    this.missing = new Set(); // closing marks that do not come again, so that nobody looks for them twice
  }

  read() {
    while (this.at < this.text.length) {
      if (!this.readOne()) {
        this.plain += this.text[this.at];
        this.at += 1;
      }
    }
    this.flush();
  }

  readOne() {
    const letter = this.text[this.at];
    if (letter === "\\") return this.readEscape();
    if (letter === "`") return this.readCode();
    if (letter === "\n") return this.readBreak();
    if (this.depth >= MOST_DEPTH) return false;
    if (letter === "[" || letter === "!") return this.readLink();
    if (letter === "<" || letter === "h") return this.readBareLink();
    if (letter === "*" || letter === "_" || letter === "~") return this.readEmphasis();
    return false;
  }

  readEscape() {
    const next = this.text[this.at + 1] || "";
    if (next === "\n") {
      this.push({ kind: "break" }, this.at + 2);
      return true;
    }
    if (!ESCAPABLE.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  readBreak() {
    const hard = this.plain.endsWith("  ");
    this.plain = this.plain.trimEnd();
    if (hard) this.push({ kind: "break" }, this.at + 1);
    else {
      this.plain += "\n";
      this.at += 1;
    }
    return true;
  }

  readCode() {
    let end = this.at;
    while (this.text[end] === "`") end += 1;
    const mark = this.text.slice(this.at, end);
    const closing = this.find(mark, end, (found) => this.text[found - 1] !== "`" && this.text[found + mark.length] !== "`");
    if (closing < 0) {
      this.plain += mark;
      this.at = end;
      return true;
    }
    const inner = this.text.slice(end, closing).replace(/\n/g, " ");
    const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
    this.push({ kind: "code", text: padded ? inner.slice(1, -1) : inner }, closing + mark.length);
    return true;
  }

  readLink() {
    const open = this.text[this.at] === "!" ? this.at + 1 : this.at;
    if (this.text[open] !== "[") return false;
    const close = this.find("](", open + 1, () => true);
    const end = close < 0 ? -1 : this.find(")", close + 2, () => true);
    if (end < 0 || end - open > MOST_LINK) return false;
    const label = this.text.slice(open + 1, close);
    if (label.includes("[")) return false;
    const target = this.text.slice(close + 2, end).trim().split(/\s/, 1)[0].replace(/^<|>$/g, "");
    const href = safeAddress(target);
    const runs = readRuns(label, this.depth + 1);
    this.push(href ? { kind: "link", href, runs } : { kind: "span", runs: [...runs, ` (${target})`] }, end + 1);
    return true;
  }

  readBareLink() {
    const start = this.text[this.at] === "<" ? this.at + 1 : this.at;
    if (start === this.at && /\w/.test(this.text[this.at - 1] || " ")) return false;
    BARE_LINK.lastIndex = start;
    const found = BARE_LINK.exec(this.text);
    if (!found) return false;
    const bracketed = start > this.at;
    if (bracketed && this.text[start + found[0].length] !== ">") return false;
    const shown = bracketed ? found[0] : found[0].replace(/[.,;:!?*_~)\]]+$/, "");
    const href = safeAddress(shown);
    if (!href) return false;
    this.push({ kind: "link", href, runs: [shown] }, start + shown.length + (bracketed ? 1 : 0));
    return true;
  }

  readEmphasis() {
    for (const [mark, kind] of MARKS) {
      if (!this.text.startsWith(mark, this.at)) continue;
      const start = this.at + mark.length;
      const underscore = mark[0] === "_";
      if (/\s/.test(this.text[start] || " ") || (underscore && /\w/.test(this.text[this.at - 1] || " "))) continue;
      const closing = this.find(mark, start + 1, (found) => this.closes(found, mark, underscore));
      if (closing < 0) continue;
      this.push({ kind, runs: readRuns(this.text.slice(start, closing), this.depth + 1) }, closing + mark.length);
      return true;
    }
    return false;
  }

  closes(found, mark, underscore) {
    if (/[\s\\]/.test(this.text[found - 1])) return false;
    const after = this.text[found + mark.length] || " ";
    if (mark.length === 1 && (after === mark || this.text[found - 1] === mark)) return false;
    if (mark.length === 2 && after === mark[0]) return false; // The last two of three end the outer one.
    return !(underscore && /\w/.test(after));
  }

  /** The next place of `mark` from `from` on that `fits`; -1 when there is none. */
  find(mark, from, fits) {
    if (this.missing.has(mark)) return -1;
    let found = this.text.indexOf(mark, from);
    while (found >= 0 && !fits(found)) found = this.text.indexOf(mark, found + 1);
    if (found < 0) this.missing.add(mark);
    return found;
  }

  push(run, next) {
    this.flush();
    this.runs.push(run);
    this.at = next;
  }

  flush() {
    if (this.plain) this.runs.push(this.plain);
    this.plain = "";
  }
}
