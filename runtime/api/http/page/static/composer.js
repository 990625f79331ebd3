// The field for questions: its documents, its keys, and what is dropped on the page.

import { byId, el, icon, iconButton } from "./dom.js";
import { droppedFiles, readFiles } from "./documents.js";
import { bytes } from "./figures.js";

const MOST_ROWS_PX = 240;
const MOST_NAMED = 3;

/** `actions` has send(text, documents), which says whether the question was taken, and stop(). */
export class Composer {
  constructor(actions) {
    this.actions = actions;
    this.documents = [];
    this.numReading = 0;
    this.field = byId("question");
    this.notice = byId("notice");
    this.connectForm();
    this.connectFiles();
    this.connectDrop();
  }

  /** Offers Stop in place of Send while an answer is made. */
  showRunning(running) {
    byId("send").hidden = running;
    byId("stop").hidden = !running;
  }

  /** Says something above the field; nothing for an empty text. */
  say(text, isError = false) {
    this.notice.textContent = text;
    this.notice.classList.toggle("error", isError);
  }

  connectForm() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.actions.stop());
    this.field.addEventListener("input", () => this.fit());
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
  }

  send() {
    const text = this.field.value.trim();
    if (this.numReading) return this.say("A document is still being read.");
    if (!text) return this.say(this.documents.length ? "Ask something about the documents." : "");
    if (!this.actions.send(text, this.documents)) return undefined;
    this.field.value = "";
    this.documents = [];
    this.say("");
    this.fit();
    return this.showDocuments();
  }

  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, MOST_ROWS_PX)}px`;
  }

  connectFiles() {
    for (const [button, input, drawing] of [["add-files", "files", "file"], ["add-folder", "folder", "folder"]]) {
      byId(button).append(icon(drawing));
      byId(button).addEventListener("click", () => byId(input).click());
      byId(input).addEventListener("change", async (event) => {
        const files = Array.from(event.target.files, (file) => ({ file }));
        event.target.value = "";
        await this.add(files);
      });
    }
    this.field.addEventListener("paste", (event) => {
      const files = Array.from(event.clipboardData.files, (file) => ({ file }));
      if (!files.length) return;
      event.preventDefault();
      this.add(files);
    });
  }

  connectDrop() {
    const veil = byId("drop");
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    window.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      veil.hidden = false;
    });
    window.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) veil.hidden = true;
    });
    window.addEventListener("drop", async (event) => {
      veil.hidden = true;
      if (!hasFiles(event)) return;
      event.preventDefault();
      await this.add(await droppedFiles(event.dataTransfer));
    });
  }

  async add(files) {
    this.numReading += 1;
    this.say("Reading …");
    try {
      const read = await readFiles(files, (name) => this.say(`Reading ${name} …`));
      this.documents.push(...read);
      const skipped = read.flatMap((one) => one.skipped);
      const more = skipped.length > MOST_NAMED ? ` and ${skipped.length - MOST_NAMED} more` : "";
      this.say(skipped.length ? `Without text, left out: ${skipped.slice(0, MOST_NAMED).join(", ")}${more}` : "");
    } catch (error) {
      this.say(error.message, true);
    } finally {
      this.numReading -= 1;
    }
    this.showDocuments();
    this.field.focus();
  }

  showDocuments() {
    byId("attachments").replaceChildren(
      ...this.documents.map((one) => {
        const remove = iconButton("remove", `Remove ${one.name}`, () => {
          this.documents = this.documents.filter((other) => other !== one);
          this.showDocuments();
          this.field.focus();
        });
        return el("li", {}, icon("file"), el("span", { class: "name" }, one.name), el("small", {}, bytes(one.text.length)), remove);
      }),
    );
  }
}
