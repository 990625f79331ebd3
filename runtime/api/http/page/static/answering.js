// One answer: the request, what comes of it, and its end.

import { chat, forkSession } from "./api.js";
import { rate, whole } from "./figures.js";
import { Prefill } from "./prefill.js";
import { addMessage, asSent, pathTo, sessionFor } from "./tree.js";

const MOST_TOKENS = 1024;

/** An answer that is being made. `onChange` is called after each event. */
export class Run {
  constructor(conversation, question, settings, model, onChange) {
    const session = sessionFor(conversation, question);
    this.conversation = conversation;
    this.session = session;
    this.body = requestBody(conversation, question, session.name, settings, model);
    const instructions = settings.instructions.trim();
    this.answer = addMessage(conversation, question.id, { role: "assistant", text: "", session: session.name, state: "running", instructions });
    this.onChange = onChange;
    this.controller = new AbortController();
    this.prefill = new Prefill();
    this.numTokens = 0;
    this.firstTokenMs = 0;
  }

  /** Ends the server's work. What came so far stays. */
  stop() {
    this.controller.abort();
  }

  /** One sentence on what happens now. */
  get sentence() {
    if (!this.numTokens) return this.prefill.sentence;
    const seconds = (performance.now() - this.firstTokenMs) / 1000;
    const speed = this.numTokens > 4 && seconds > 0.2 ? `, ${rate((this.numTokens - 1) / seconds)} tokens/s` : "";
    return `${whole(this.numTokens)} token${this.numTokens === 1 ? "" : "s"}${speed}`;
  }

  /** Runs to the end, which is in the answer's state: done, stopped or failed. */
  async finish() {
    try {
      if (this.session.from) await forkSession(this.session.from, this.session.name);
      for await (const event of chat(this.body, this.controller.signal)) {
        this.conversation.heads[this.session.name] = this.answer.id;
        this.take(event);
        this.onChange(this);
      }
      this.answer.state = "done";
    } catch (error) {
      this.answer.state = this.controller.signal.aborted ? "stopped" : "failed";
      if (this.answer.state === "failed") this.answer.error = error.message;
    }
    this.conversation.updated = Date.now();
    this.onChange(this);
  }

  take(event) {
    if (event.prompt_progress) this.prefill.note(event.prompt_progress);
    if (event.usage) this.answer.usage = event.usage;
    const choice = event.choices?.[0];
    const { content, reasoning } = choice?.delta || {};
    if (content || reasoning) {
      if (!this.numTokens) this.firstTokenMs = performance.now();
      this.numTokens += 1;
      if (content) this.answer.text += content;
      if (reasoning) this.answer.reasoning = (this.answer.reasoning || "") + reasoning;
    }
    if (choice?.attention) this.answer.attention = choice.attention;
    if (choice?.finish_reason) this.answer.finish = choice.finish_reason;
  }
}

function requestBody(conversation, question, session, settings, model) {
  const body = {
    model,
    messages: asSent(pathTo(conversation, question.id), settings.instructions.trim()),
    session_id: session,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
    return_recall: true,
    max_tokens: Number(settings.maxTokens) || MOST_TOKENS,
  };
  if (settings.inspect) body.inspect = true;
  if (settings.preset) body.preset = settings.preset;
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.topkKeys !== "") body.memory = { topk_keys: Number(settings.topkKeys) };
  return body;
}
