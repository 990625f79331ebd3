// Files that were chosen or dropped, as documents: {name, text, skipped}. The server reads PDF, the page reads text.

import { documentText } from "./api.js";

const MOST_FILES = 2000;
const MOST_FILE_BYTES = 48 * 2 ** 20;
const PDF = "%PDF-";
const LOOK_BYTES = 1024;

/** The documents of chosen files. Files of one folder are one document. `onFile` is told each name before it is read. */
export async function readFiles(files, onFile) {
  const folders = new Map();
  const single = [];
  for (const file of files) {
    const path = file.path ?? file.file.webkitRelativePath;
    const root = path.includes("/") ? path.split("/", 1)[0] : null;
    if (root === null) single.push(file);
    else folders.set(root, [...(folders.get(root) || []), { ...file, path: path.slice(root.length + 1) }]);
  }
  const documents = [];
  for (const { file } of single) {
    onFile(file.name);
    documents.push({ name: file.name, text: await textOf(file, file.name), skipped: [] });
  }
  for (const [name, inside] of folders) documents.push(await folderText(name, inside, onFile));
  return documents;
}

/** The files of what was dropped, those of folders too. */
export async function droppedFiles(transfer) {
  const entries = Array.from(transfer.items, (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const found = [];
  for (const entry of entries) await collect(entry, "", found);
  return found;
}

async function collect(entry, folder, found) {
  if (found.length >= MOST_FILES || entry.name.startsWith(".")) return;
  const path = folder + entry.name;
  if (entry.isFile) {
    found.push({ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return; // A reader gives a hundred entries at a time.
    for (const inner of some) await collect(inner, `${path}/`, found);
  }
}

async function folderText(name, files, onFile) {
  const parts = [];
  const skipped = [];
  const visible = files.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
  visible.sort((one, other) => (one.path < other.path ? -1 : 1));
  for (const { file, path } of visible.slice(0, MOST_FILES)) {
    onFile(`${name}/${path}`);
    try {
      parts.push(`=== ${path} ===\n${await textOf(file, path)}`);
    } catch (error) {
      if (error.status >= 500 || error.status === 0) throw error;
      skipped.push(path);
    }
  }
  skipped.push(...visible.slice(MOST_FILES).map(({ path }) => path));
  if (!parts.length) throw new Error(`${name}: no file in it has text.`);
  return { name, text: parts.join("\n\n"), skipped };
}

async function textOf(file, name) {
  if (file.size > MOST_FILE_BYTES) throw new Error(`${name}: has more than ${MOST_FILE_BYTES / 2 ** 20} MiB; split it.`);
  const head = new TextDecoder("latin1").decode(await file.slice(0, LOOK_BYTES).arrayBuffer());
  const text = head.includes(PDF) ? await documentText(file, name) : await plainText(file, name);
  if (!text.trim()) throw new Error(`${name}: has no text in it.`);
  return text;
}

async function plainText(file, name) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return text;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // A TypeError says that it is no UTF-8.
  }
  throw new Error(`${name}: is neither PDF nor UTF-8 text.`);
}
