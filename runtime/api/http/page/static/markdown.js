// Reads Markdown into plain records; render.js draws them. What is no Markdown here, HTML too, stays text.

const MOST_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]{1,4})(.*)|)$/;
const QUOTE = /^ {0,3}> ?/;
const ROW_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** The blocks of a text, each with the source that it came from. */
export function readBlocks(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, next] = readBlock(lines, at, depth);
    block.source = lines.slice(at, next).join("\n");
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return readFence(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2] || "" }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < MOST_DEPTH && QUOTE.test(line)) return readQuote(lines, at, depth);
  if (depth < MOST_DEPTH && ITEM.test(line)) return readList(lines, at, depth);
  if (isTable(lines, at)) return readTable(lines, at);
  return readParagraph(lines, at, depth);
}

function readFence(lines, at, fence) {
  const mark = fence[1];
  let end = at + 1;
  while (end < lines.length) {
    const closing = lines[end].trim();
    if (closing.length >= mark.length && closing === mark[0].repeat(closing.length)) break;
    end += 1;
  }
  const closed = end < lines.length;
  return [{ kind: "code", language: fence[2], text: lines.slice(at + 1, end).join("\n") }, closed ? end + 1 : end];
}

function readQuote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ kind: "quote", blocks: readBlocks(inner.join("\n"), depth + 1) }, end];
}

function readList(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || /\d/.test(item[2]) !== ordered || RULE.test(lines[end])) break;
    const indent = item[1].length + item[2].length + (item[3] || " ").length;
    const inner = [item[4] || ""];
    end += 1;
    while (end < lines.length) {
      const line = lines[end];
      const continued = line.startsWith(" ".repeat(indent)) || /^\t/.test(line) || (/^ {2,}/.test(line) && ITEM.test(line.trim()));
      if (!line.trim()) {
        const following = lines[end + 1] || "";
        if (!goesOn(following, indent, ordered)) break;
        loose = true;
        inner.push("");
      } else if (continued) {
        inner.push(line.startsWith(" ".repeat(indent)) ? line.slice(indent) : line.trimStart());
      } else if (!ITEM.test(line) && !startsBlock(line) && inner.at(-1) !== "") {
        inner.push(line.trimStart());
      } else break;
      end += 1;
    }
    items.push(readItem(inner, depth));
  }
  const start = ordered ? Number.parseInt(first[2], 10) : 1;
  return [{ kind: "list", ordered, start, loose, items }, end];
}

/** Whether the line after a blank one belongs to the list. */
function goesOn(line, indent, ordered) {
  const item = ITEM.exec(line);
  if (item && item[1].length < indent) return /\d/.test(item[2]) === ordered && !RULE.test(line);
  return Boolean(line.trim()) && line.startsWith(" ".repeat(indent));
}

function readItem(inner, depth) {
  const task = /^\[([ xX])\][ \t]+/.exec(inner[0]);
  if (task) inner[0] = inner[0].slice(task[0].length);
  return { checked: task ? task[1] !== " " : null, blocks: readBlocks(inner.join("\n"), depth + 1) };
}

function isTable(lines, at) {
  return lines[at].includes("|") && ROW_RULE.test(lines[at + 1] || "") && cells(lines[at]).length === cells(lines[at + 1]).length;
}

function readTable(lines, at) {
  const header = cells(lines[at]);
  const aligned = cells(lines[at + 1]).map((cell) => ({ "::": "center", "-:": "right", ":-": "left" })[cell[0] + cell.at(-1)] || null);
  const rows = [];
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) {
    const row = cells(lines[end]).slice(0, header.length);
    rows.push([...row, ...Array(header.length - row.length).fill("")]);
    end += 1;
  }
  return [{ kind: "table", header, aligned, rows }, end];
}

/** The cells of a row. A stroke after a backslash, or in code, parts no cells. */
function cells(line) {
  const found = [""];
  let inCode = false;
  const row = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  for (let at = 0; at < row.length; at += 1) {
    if (row[at] === "\\" && row[at + 1] === "|") {
      found[found.length - 1] += "|";
      at += 1;
    } else if (row[at] === "|" && !inCode) found.push("");
    else {
      if (row[at] === "`") inCode = !inCode;
      found[found.length - 1] += row[at];
    }
  }
  return found.map((cell) => cell.trim());
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

function readParagraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !isTable(lines, end)) {
    if (startsBlock(lines[end]) || (depth < MOST_DEPTH && /^ {0,3}(?:[-*+]|1[.)])[ \t]+\S/.test(lines[end]))) break;
    end += 1;
  }
  return [{ kind: "paragraph", text: lines.slice(at, end).map((line) => line.trimStart()).join("\n") }, end];
}
