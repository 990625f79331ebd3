// Calls of the server. An answer comes as server-sent events, which are read as they arrive.

import { readEvents } from "./events.js";

let key = sessionStorage.getItem("moorage.key");
let askForKey = async () => null;

/** What to call when the server asks for a key: a function that gives one, or null. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** An error as the server words it, with its status. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The events of an answer; aborting `signal` ends the server's work. */
export async function* chat(body, signal) {
  const response = await send("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), type: "application/json", signal });
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(event.error.code, event.error.message);
    yield event;
  }
}

/** The one served model. */
export async function servedModel() {
  return (await json("/v1/models")).data[0];
}

/** Presets that a request may name, and the server's own. */
export async function presets() {
  return json("/v1/presets");
}

/** The text of a PDF. */
export async function documentText(file, name) {
  const path = `/v1/documents?name=${encodeURIComponent(name)}`;
  return (await json(path, { method: "POST", body: file, type: "application/octet-stream" })).text;
}

/** Token ids of a conversation as the model gets it. */
export async function tokensOf(messages) {
  return (await json("/tokenize", { method: "POST", body: JSON.stringify({ messages }), type: "application/json" })).tokens;
}

/** The text of token ids. */
export async function textOfTokens(tokens) {
  return (await json("/detokenize", { method: "POST", body: JSON.stringify({ tokens }), type: "application/json" })).content;
}

/** Sessions that the server holds, by name; none where it does not say. */
export async function sessions() {
  const list = await optional("/v1/sessions");
  return new Map((list?.data || []).map((session) => [session.id ?? session.name, session]));
}

/** Lets `to` share what `from` holds. False where that can't be; then `to` is read anew. */
export async function forkSession(from, to) {
  const body = JSON.stringify({ name: to });
  return (await optional(`/v1/sessions/${encodeURIComponent(from)}/fork`, { method: "POST", body, type: "application/json" })) !== null;
}

/** Drops a session, if the server holds it. */
export async function deleteSession(name) {
  await optional(`/v1/sessions/${encodeURIComponent(name)}`, { method: "DELETE" });
}

async function optional(path, options) {
  try {
    return await json(path, options);
  } catch (error) {
    if (error instanceof ServerError && error.status < 500) return null;
    throw error;
  }
}

async function json(path, options) {
  const text = await (await send(path, options)).text();
  return text ? JSON.parse(text) : {};
}

async function send(path, { method = "GET", body, type, signal } = {}) {
  const headers = { ...(type && { "content-type": type }), ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { method, body, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server can't be reached. Is it running?");
  }
  if (response.status === 401) {
    const given = await askForKey();
    if (given) {
      key = given;
      sessionStorage.setItem("moorage.key", key);
      return send(path, { method, body, type, signal });
    }
  }
  if (!response.ok) throw new ServerError(response.status, await reason(response));
  return response;
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answers ${response.status}.`;
  }
}
