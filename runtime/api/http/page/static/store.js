// What the browser keeps: conversations with their documents in IndexedDB, settings in localStorage.

const SETTINGS = "moorage.settings";
const TABLE = "conversations";

/** Defaults of all settings; an empty one leaves the choice to the server. */
export const DEFAULTS = { preset: "", topkKeys: "", temperature: "", maxTokens: "", instructions: "", inspect: false, theme: "auto" };

/** The settings as they were kept. */
export function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS) || "{}") };
  } catch {
    return { ...DEFAULTS }; // Somebody else's text under this name.
  }
}

/** Keeps the settings. */
export function saveSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}

/** All conversations, the latest first. */
export async function loadConversations() {
  const all = await done((await table("readonly")).getAll());
  return all.sort((one, other) => other.updated - one.updated);
}

/** Keeps a conversation as it now is. */
export async function saveConversation(conversation) {
  await done((await table("readwrite")).put(conversation));
}

/** Forgets a conversation. */
export async function removeConversation(id) {
  await done((await table("readwrite")).delete(id));
}

let opened = null;

async function table(mode) {
  opened ??= open();
  return (await opened).transaction(TABLE, mode).objectStore(TABLE);
}

function open() {
  const request = indexedDB.open("moorage", 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
  return done(request);
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
