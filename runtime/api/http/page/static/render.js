// Draws what markdown.js and inline.js have read, as elements.

import { copyText, el } from "./dom.js";
import { readBlocks } from "./markdown.js";
import { readRuns } from "./inline.js";

const TAGS = { strong: "strong", em: "em", strike: "s", span: "span" };

/** Shows `text` in `place`. Blocks that have not changed since the last call stay the same elements. */
export function showMarkdown(place, text) {
  const blocks = readBlocks(text);
  const shown = place.shownSources || [];
  let same = 0;
  while (same < blocks.length && shown[same] === blocks[same].source) same += 1;
  while (place.childNodes.length > same) place.lastChild.remove();
  place.append(...blocks.slice(same).map(drawn));
  place.shownSources = blocks.map((block) => block.source);
}

function drawn(block) {
  switch (block.kind) {
    case "heading":
      return el(`h${Math.min(6, block.level + 2)}`, { class: `heading-${block.level}` }, ...runsOf(block.text));
    case "rule":
      return el("hr");
    case "code":
      return codeBlock(block);
    case "quote":
      return el("blockquote", {}, ...block.blocks.map(drawn));
    case "list":
      return list(block);
    case "table":
      return table(block);
    default:
      return el("p", {}, ...runsOf(block.text));
  }
}

function list(block) {
  const items = block.items.map((item) => {
    const inner = item.blocks.flatMap((part) => (part.kind === "paragraph" && !block.loose ? runsOf(part.text) : [drawn(part)]));
    const box = item.checked === null ? null : el("input", { type: "checkbox", checked: item.checked, disabled: true });
    return el("li", { class: box ? "task" : null }, box, ...inner);
  });
  return block.ordered ? el("ol", { start: block.start }, ...items) : el("ul", {}, ...items);
}

function table(block) {
  const row = (cells, tag) =>
    el("tr", {}, ...cells.map((cell, at) => el(tag, { class: block.aligned[at] && `align-${block.aligned[at]}` }, ...runsOf(cell))));
  const head = el("thead", {}, row(block.header, "th"));
  const body = el("tbody", {}, ...block.rows.map((cells) => row(cells, "td")));
  return el("div", { class: "table", tabIndex: 0, role: "group", "aria-label": "Table" }, el("table", {}, head, body));
}

function codeBlock(block) {
  const copy = el("button", { type: "button", class: "copy" }, "Copy");
  copy.addEventListener("click", async () => {
    await copyText(block.text);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const label = `Code${block.language ? ` in ${block.language}` : ""}`;
  return el(
    "figure",
    { class: "code" },
    el("figcaption", {}, el("span", {}, block.language), copy),
    el("pre", { tabIndex: 0, role: "group", "aria-label": label }, el("code", {}, block.text)),
  );
}

function runsOf(text) {
  return readRuns(text).map(run);
}

function run(one) {
  if (typeof one === "string") return document.createTextNode(one);
  if (one.kind === "break") return el("br");
  if (one.kind === "code") return el("code", {}, one.text);
  const inner = one.runs.map(run);
  if (one.kind === "link") return el("a", { href: one.href, target: "_blank", rel: "noopener noreferrer" }, ...inner);
  if (one.kind === "strongEm") return el("strong", {}, el("em", {}, ...inner));
  return el(TAGS[one.kind], {}, ...inner);
}
