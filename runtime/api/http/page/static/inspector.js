// Where an answer looked: a strip of the whole prompt, coloured by attention; a click shows the text there.

import { textOfTokens, tokensOf } from "./api.js";
import { el } from "./dom.js";
import { whole } from "./figures.js";
import { cellsOf } from "./strip.js";
import { asSent, pathTo } from "./tree.js";

/** The inspector of an answer, which is drawn when it is opened. */
export function inspector(conversation, message) {
  const recall = message.usage?.moorage?.[0]?.recall;
  const note = recall == null ? "" : `; selection held ${(100 * recall).toFixed(1)} % of the attention`;
  const made = el("details", { class: "inspector" }, el("summary", {}, `Where this answer looked${note}`));
  made.addEventListener("toggle", () => made.open && made.childElementCount === 1 && made.append(strip(conversation, message)), { once: true });
  return made;
}

function strip(conversation, message) {
  const cells = cellsOf(message.attention);
  const shown = el("figcaption", { "aria-live": "polite" });
  const text = el("pre", { tabIndex: 0, hidden: true });
  const tokens = tokensOf(asSent(pathTo(conversation, message.parent), message.instructions));
  const buttons = cells.map((cell, at) => cellButton(cell, at, () => choose(at)));
  const choose = async (at) => {
    buttons.forEach((button, other) => {
      button.tabIndex = other === at ? 0 : -1;
      button.setAttribute("aria-pressed", String(other === at));
    });
    shown.textContent = sentence(cells[at]);
    const all = await tokens;
    const inside = all.slice(cells[at].start, cells[at].end);
    text.hidden = false;
    text.textContent = inside.length ? await textOfTokens(inside) : message.text;
  };
  const row = el("div", { class: "strip", role: "toolbar", "aria-label": "Parts of the prompt, from its beginning" }, ...buttons);
  row.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (!step || !next) return;
    event.preventDefault();
    next.focus();
    next.click();
  });
  const hottest = cells.reduce((best, cell, at) => (at > 0 && at < cells.length - 1 && cell.share > (cells[best]?.share ?? -1) ? at : best), -1);
  choose(Math.max(0, hottest));
  return el("figure", {}, row, shown, text);
}

function cellButton(cell, at, onclick) {
  const label = sentence(cell);
  const button = el("button", { type: "button", class: "cell", title: label, "aria-label": label, tabIndex: -1, onclick });
  button.style.setProperty("--heat", `${Math.round(100 * cell.heat)}%`);
  return button;
}

function sentence(cell) {
  return `Tokens ${whole(cell.start)} to ${whole(cell.end)}: ${(100 * cell.share).toFixed(cell.share < 0.1 ? 2 : 1)} % of the attention`;
}
