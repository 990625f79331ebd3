// The page: what is shown, and what its buttons do.

import { Run } from "./answering.js";
import { deleteSession, onKeyWanted, presets, servedModel, sessions } from "./api.js";
import { Composer } from "./composer.js";
import { byId, el, icon } from "./dom.js";
import { whole } from "./figures.js";
import { applyTheme, connectSettings, offerPresets, otherTheme } from "./settings.js";
import { showSidebar } from "./sidebar.js";
import { loadConversations, loadSettings, removeConversation, saveConversation, saveSettings } from "./store.js";
import { Transcript } from "./transcript.js";
import { addMessage, newConversation, showVersion } from "./tree.js";

const MOST_TITLE = 60;
const RETRY_MS = 3000;

class App {
  constructor() {
    this.settings = loadSettings();
    this.conversations = [];
    this.current = newConversation();
    this.running = new Map(); // by the id of the conversation
    this.held = new Map();
    this.model = null;
    this.composer = new Composer({ send: (text, documents) => this.send(text, documents), stop: () => this.running.get(this.current.id)?.stop() });
    this.transcript = new Transcript(byId("transcript"), {
      again: (answer) => this.ask(this.current, this.current.messages[answer.parent]),
      edit: (question, text) => this.ask(this.current, addMessage(this.current, question.parent, { role: "user", text, documents: question.documents })),
      show: (message) => this.showVersion(message),
    });
  }

  async start() {
    this.connectBar();
    this.connectKeys();
    onKeyWanted(askForKey);
    this.conversations = await loadConversations();
    for (const conversation of this.conversations) endInterrupted(conversation);
    this.open(this.conversations[0] || this.current, { focus: true });
    await this.connect();
  }

  async connect() {
    try {
      this.model = await servedModel();
      byId("model").textContent = `${this.model.id}, up to ${whole(this.model.max_model_len)} tokens`;
      document.title = `${this.model.id} – Moorage`;
      offerPresets(byId("settings"), await presets(), this.settings.preset);
      this.composer.say("");
      await this.lookAtSessions();
    } catch (error) {
      this.composer.say(error.message, true);
      if (error.status !== 401) setTimeout(() => this.connect(), RETRY_MS);
    }
  }

  connectBar() {
    const openSettings = connectSettings(byId("settings"), this.settings, () => applyTheme(this.settings.theme));
    byId("open-settings").append(icon("settings"));
    byId("open-settings").addEventListener("click", openSettings);
    byId("toggle-theme").append(icon("theme"));
    byId("toggle-theme").addEventListener("click", () => {
      this.settings.theme = otherTheme(this.settings.theme);
      saveSettings(this.settings);
      applyTheme(this.settings.theme);
    });
    byId("open-sidebar").append(icon("menu"));
    byId("open-sidebar").addEventListener("click", () => this.showList(!document.body.classList.contains("list-open")));
    byId("new-conversation").addEventListener("click", () => this.open(newConversation(), { focus: true }));
  }

  connectKeys() {
    window.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      if (document.body.classList.contains("list-open")) this.showList(false);
      else this.running.get(this.current.id)?.stop();
    });
  }

  showList(open) {
    document.body.classList.toggle("list-open", open);
    byId("open-sidebar").setAttribute("aria-expanded", String(open));
  }

  open(conversation, { focus = false } = {}) {
    this.current = conversation;
    this.showList(false);
    this.transcript.show(conversation, this.running.get(conversation.id), welcome);
    this.showState();
    if (focus) byId("question").focus();
  }

  send(text, documents) {
    if (this.running.has(this.current.id)) return false;
    if (!this.model) return false;
    const conversation = this.current;
    const question = addMessage(conversation, conversation.leaf, { role: "user", text, documents: documents.map(({ name, text }) => ({ name, text })) });
    this.ask(conversation, question);
    return true;
  }

  async ask(conversation, question) {
    if (this.running.has(conversation.id)) return;
    conversation.title ||= question.text.replace(/\s+/g, " ").slice(0, MOST_TITLE);
    if (!this.conversations.includes(conversation)) this.conversations.unshift(conversation);
    const run = new Run(conversation, question, this.settings, this.model.id, () => {
      if (this.current === conversation) this.transcript.refresh(run);
    });
    this.running.set(conversation.id, run);
    this.open(conversation);
    await this.keep(conversation);
    await run.finish();
    this.running.delete(conversation.id);
    byId("announce").textContent = { done: "The answer is complete.", stopped: "Stopped.", failed: "" }[run.answer.state];
    await this.keep(conversation);
    this.showState();
    await this.lookAtSessions();
  }

  showVersion(message) {
    if (this.running.has(this.current.id)) return;
    showVersion(this.current, message);
    this.open(this.current);
    this.keep(this.current);
  }

  async keep(conversation) {
    if (!this.conversations.includes(conversation)) return; // It was deleted meanwhile.
    try {
      await saveConversation(conversation);
    } catch (error) {
      this.composer.say(`The browser does not keep this conversation: ${error.message}`, true);
    }
  }

  async remove(conversation) {
    if (!confirm(`Delete “${conversation.title}”, and what the server holds of it?`)) return;
    this.running.get(conversation.id)?.stop();
    this.conversations = this.conversations.filter((other) => other !== conversation);
    if (this.current === conversation) this.open(this.conversations[0] || newConversation(), { focus: true });
    this.showState();
    await removeConversation(conversation.id);
    for (const name of Object.keys(conversation.heads)) await deleteSession(name);
    await this.lookAtSessions();
  }

  async lookAtSessions() {
    this.held = await sessions().catch(() => new Map()); // The list is shown without sizes then.
    this.showState();
  }

  showState() {
    this.composer.showRunning(this.running.has(this.current.id));
    showSidebar(byId("conversations"), byId("held"), {
      conversations: this.conversations,
      current: this.current,
      running: this.running,
      held: this.held,
      onOpen: (conversation) => this.open(conversation, { focus: true }),
      onRemove: (conversation) => this.remove(conversation),
    });
  }
}

/** Answers that a closed page left open have what came until then. */
function endInterrupted(conversation) {
  for (const message of Object.values(conversation.messages)) if (message.state === "running") message.state = "stopped";
}

function welcome() {
  return el(
    "div",
    { class: "welcome" },
    el("h2", {}, "Ask about something long"),
    el("p", {}, "Drop text, PDF or a whole folder on this page, and ask. The document is read once. Every further question goes on from there."),
  );
}

async function askForKey() {
  const dialog = byId("key-dialog");
  const field = dialog.querySelector("input");
  if (!dialog.open) {
    field.value = "";
    dialog.showModal();
  }
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return field.value || null;
}

new App().start();
