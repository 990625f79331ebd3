// Draws the messages of a conversation and keeps the answer in sight that grows.

import { copyText, el, icon, iconButton } from "./dom.js";
import { bytes, usageLine } from "./figures.js";
import { inspector } from "./inspector.js";
import { showMarkdown } from "./render.js";
import { pathTo, versionsOf } from "./tree.js";

const NEAR_END_PX = 60;
const MOST_SHOWN = 20_000; // characters of a document
const STATES = { stopped: "Stopped.", length: "The answer was cut at its token limit, which the settings can raise." };

/** `actions` has ask(question), again(answer), show(message), edit(question, text). */
export class Transcript {
  constructor(place, actions) {
    this.place = place;
    this.actions = actions;
    this.views = new Map();
    this.drawing = 0;
  }

  /** Shows a conversation; `run` is its answer that is being made, if there is one. */
  show(conversation, run, welcome) {
    this.conversation = conversation;
    this.run = run;
    this.views.clear();
    const path = pathTo(conversation);
    this.place.replaceChildren(...(path.length ? path.map((message) => this.drawn(message)) : [welcome()]));
    this.place.scrollTop = this.place.scrollHeight;
  }

  /** Draws the growing answer anew, at most once a frame. */
  refresh(run) {
    this.run = run;
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      const view = this.views.get(this.run.answer.id);
      if (!view) return;
      const { scrollHeight, scrollTop, clientHeight } = this.place;
      const atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
      this.fill(view, this.run.answer);
      if (atEnd) this.place.scrollTop = this.place.scrollHeight;
    });
  }

  drawn(message) {
    return message.role === "user" ? this.question(message) : this.answer(message);
  }

  question(message) {
    const text = el("div", { class: "question-text" }, message.text);
    const edit = iconButton("edit", "Edit this question", () => text.replaceWith(this.editor(message, text)));
    return el(
      "article",
      { class: "message question", "aria-label": "Your question" },
      el("div", { class: "bubble" }, ...(message.documents || []).map(documentChip), text),
      el("div", { class: "tools" }, this.versions(message), edit),
    );
  }

  answer(message) {
    const view = { body: el("div", { class: "markdown" }), status: el("div", { class: "status" }), tools: el("div", { class: "tools" }) };
    view.thought = el("div", { class: "thought", tabIndex: 0 });
    view.reasoning = el("details", { class: "reasoning" }, el("summary", {}, "Reasoning"), view.thought);
    const parts = [view.reasoning, view.body, view.status, view.tools];
    view.article = el("article", { class: "message answer", "aria-label": "Answer" }, ...parts);
    this.views.set(message.id, view);
    this.fill(view, message);
    return view.article;
  }

  fill(view, message) {
    const running = message.state === "running" && this.run?.answer.id === message.id;
    view.article.setAttribute("aria-busy", String(running));
    view.reasoning.hidden = !message.reasoning;
    view.thought.textContent = message.reasoning || "";
    showMarkdown(view.body, message.text);
    if (running) {
      this.fillProgress(view);
      view.tools.replaceChildren();
      return;
    }
    view.bar = null;
    const lines = [message.usage && usageLine(message.usage), STATES[message.state], message.finish === "length" && STATES.length];
    view.status.replaceChildren(
      ...(message.error ? [el("p", { class: "error", role: "alert" }, message.error)] : []),
      ...lines.filter(Boolean).map((line) => el("p", {}, line)),
      ...(message.attention ? [inspector(this.conversation, message)] : []),
    );
    view.tools.replaceChildren(
      ...[this.versions(message)].filter(Boolean),
      iconButton("copy", "Copy this answer", () => copyText(message.text)),
      iconButton("again", "Answer again", () => this.actions.again(message)),
    );
  }

  fillProgress(view) {
    const reading = !this.run.numTokens;
    if (!view.bar) {
      view.bar = el("progress", { max: 1, "aria-label": "Prompt read" });
      view.line = el("p", {});
      view.status.replaceChildren(view.bar, view.line);
    }
    view.bar.hidden = !reading;
    if (this.run.prefill.share === null) view.bar.removeAttribute("value");
    else view.bar.value = this.run.prefill.share;
    view.line.textContent = this.run.sentence;
  }

  /** Buttons to the other branches that begin with another version of this message. */
  versions(message) {
    const all = versionsOf(this.conversation, message);
    if (all.length < 2) return null;
    const at = all.indexOf(message);
    const step = (name, label, to) => {
      const button = iconButton(name, label, () => this.actions.show(all[to]));
      button.disabled = !(to in all);
      return button;
    };
    return el(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions" },
      step("previous", "Version before", at - 1),
      el("span", {}, `${at + 1} of ${all.length}`),
      step("next", "Version after", at + 1),
    );
  }

  editor(message, text) {
    const field = el("textarea", { value: message.text, rows: 3, "aria-label": "The question, edited" });
    const send = () => field.value.trim() && this.actions.edit(message, field.value.trim());
    const cancel = () => {
      editor.replaceWith(text);
      text.closest("article").querySelector(".tools button:last-child").focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      }
    });
    const buttons = [
      el("button", { type: "button", class: "button", onclick: cancel }, "Cancel"),
      el("button", { type: "button", class: "button main-button", onclick: send }, "Ask as a branch"),
    ];
    const editor = el("div", { class: "editor" }, field, el("div", { class: "row" }, el("span", { class: "space" }), ...buttons));
    requestAnimationFrame(() => field.focus());
    return editor;
  }
}

function documentChip(one) {
  const shown = one.text.length > MOST_SHOWN ? `${one.text.slice(0, MOST_SHOWN)}\n…` : one.text;
  const size = bytes(one.text.length);
  const summary = el("summary", {}, icon("file"), el("span", { class: "name" }, one.name), el("small", {}, size));
  return el("details", { class: "document" }, summary, el("pre", { tabIndex: 0 }, shown));
}
