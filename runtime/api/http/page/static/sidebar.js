// The list of conversations, with what the server holds of each.

import { el, iconButton } from "./dom.js";
import { bytes, counted } from "./figures.js";

/** Draws the list. `held` maps names of sessions to what the server says of them. */
export function showSidebar(list, total, { conversations, current, running, held, onOpen, onRemove }) {
  list.replaceChildren(
    ...conversations.map((conversation) => {
      const title = conversation.title || "New conversation";
      const open = el(
        "button",
        { type: "button", class: "open", "aria-current": conversation === current ? "true" : null, onclick: () => onOpen(conversation) },
        el("span", { class: "title" }, title),
        el("small", {}, running.has(conversation.id) ? "answering …" : heldBy(conversation, held)),
      );
      return el("li", {}, open, iconButton("remove", `Delete ${title}`, () => onRemove(conversation)));
    }),
  );
  const all = [...held.values()];
  const sum = all.reduce((bytesSoFar, one) => bytesSoFar + (one.dram_bytes || 0), 0);
  total.textContent = all.length ? `${counted(all.length, "session")} in memory, ${bytes(sum)}` : "";
}

function heldBy(conversation, held) {
  const own = Object.keys(conversation.heads).map((name) => held.get(name)).filter(Boolean);
  if (!own.length) return "";
  const tokens = Math.max(...own.map((one) => one.num_tokens || 0));
  return `${counted(tokens, "token")}, ${bytes(own.reduce((sum, one) => sum + (one.dram_bytes || 0), 0))}`;
}
