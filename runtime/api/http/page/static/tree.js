// A conversation is a tree of messages. An edited question and a second answer are branches; `leaf` ends the shown one.

/** A new conversation without a message. */
export function newConversation() {
  const now = Date.now();
  return { id: randomName(), title: "", created: now, updated: now, messages: {}, leaf: null, heads: {} };
}

/** A name that nobody else has. */
export function randomName() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Adds a message after `parent` (null for the first), and shows its branch. */
export function addMessage(conversation, parent, fields) {
  const message = { id: randomName(), parent, created: Date.now(), ...fields };
  conversation.messages[message.id] = message;
  conversation.leaf = message.id;
  conversation.updated = message.created;
  return message;
}

/** The messages from the first one to `leaf`. */
export function pathTo(conversation, leaf = conversation.leaf) {
  const path = [];
  for (let id = leaf; id; id = conversation.messages[id].parent) path.unshift(conversation.messages[id]);
  return path;
}

/** All versions of a message, itself included, in the order of their making. */
export function versionsOf(conversation, message) {
  return childrenOf(conversation, message.parent);
}

/** Shows the branch that goes on from `message`, along its newest messages. */
export function showVersion(conversation, message) {
  let last = message;
  for (let next = message; next; next = childrenOf(conversation, next.id).at(-1)) last = next;
  conversation.leaf = last.id;
}

/** What the server gets: instructions, and for each question its documents before it, as `runtime chat` has them. */
export function asSent(path, instructions) {
  const sent = instructions ? [{ role: "system", content: instructions }] : [];
  for (const message of path) {
    const documents = (message.documents || []).map((one) => `${one.name}:\n${one.text}`);
    sent.push({ role: message.role, content: [...documents, message.text].join("\n\n") });
  }
  return sent;
}

/**
 * The session for an answer to `question`: {name, from}.
 *
 * A session goes on where its last answer ended. Elsewhere it is a branch, which begins as a fork of `from`.
 */
export function sessionFor(conversation, question) {
  const asked = question.parent && conversation.messages[question.parent];
  if (asked && conversation.heads[asked.session] === asked.id) return { name: asked.session, from: null };
  const held = Object.keys(conversation.heads);
  const from = asked && asked.session in conversation.heads ? asked.session : held[0];
  return { name: `page-${conversation.id}-${held.length}`, from: from ?? null };
}

function childrenOf(conversation, id) {
  return Object.values(conversation.messages)
    .filter((message) => message.parent === id)
    .sort((one, other) => one.created - other.created);
}
